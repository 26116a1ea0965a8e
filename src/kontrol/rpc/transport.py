"""A ZeroMQ socket on the event loop, without a future or a task per message.

ZeroMQ signals through one descriptor that becomes readable when *anything* happened inside, and
that any call on the socket, a send too, may quieten again. So there are two rules here: receive
until there is nothing left before waiting for the descriptor, and look again after every send
(once per turn of the loop, however many sends there were). `zmq.asyncio` keeps them too, at the
price of a future and several callbacks per message; the endpoints here only need a callback.
"""

import asyncio
from collections.abc import Callable, Sequence

import zmq

from kontrol.rpc.errors import LostRemote

_BATCH = 64
"""Messages received in one turn of the loop, so that nothing else waits long."""


async def until_sent(send: Callable[[], bool]) -> None:
    """Call `send` until it returns True.

    In growing pauses, because ZeroMQ does not report when the pipe to one of a router's peers has
    room again. A pipe is full only for a moment, or because its peer does not read.
    """
    pause = 0.001
    while not send():
        await asyncio.sleep(pause)
        pause = min(2 * pause, 1.0)


class Transport:
    """Owns `socket`: `receive` is called with the parts of each message, in order."""

    def __init__(
        self,
        socket: "zmq.Socket[bytes]",
        receive: Callable[[list[zmq.Frame]], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._socket = socket
        self._receive = receive
        self._loop = loop
        self._descriptor: int = socket.getsockopt(zmq.FD)  # type: ignore[assignment]  # bytes for other options
        self._scheduled: asyncio.Handle | None = None
        self._draining = False
        self.behind = False
        """Whether the last look left messages unread."""
        loop.add_reader(self._descriptor, self.drain)
        self._look_again()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._socket.closed

    def send(self, parts: Sequence[bytes]) -> bool:
        """Send; returns False, and sends nothing, if the peer's queue is full.

        Raises `LostRemote` if the peer that the parts are routed to is not connected.
        """
        if self._socket.closed:
            raise LostRemote("the connection is closed")
        try:
            self._socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            raise LostRemote("the peer's connection is closed") from None
        finally:
            self._look_again()
        return True

    async def deliver(self, parts: Sequence[bytes]) -> None:
        """Send as soon as the peer's queue has room. Raises `LostRemote`."""
        await until_sent(lambda: self.send(parts))

    def drain(self) -> bool:
        """Receive what is there, up to one batch; return whether more may be left.

        If so, it is received in the next turn of the loop.
        """
        if self._scheduled is not None:
            self._scheduled.cancel()
        self._scheduled = None
        self._draining, left = True, True
        try:
            for _ in range(_BATCH):
                if self._socket.closed:
                    return False
                frames = [self._socket.recv(zmq.NOBLOCK, copy=False)]
                while frames[-1].more:
                    frames.append(self._socket.recv(zmq.NOBLOCK, copy=False))
                self._receive(frames)
        except zmq.Again:
            left = False
        except zmq.ZMQError:
            left = False
            raise
        finally:
            self._draining = False
            self.behind = left
            if left:
                self._look_again()
        return left

    def close(self) -> None:
        """Close the socket; what was not sent yet is dropped."""
        if not self._socket.closed:
            self._loop.remove_reader(self._descriptor)
            if self._scheduled is not None:
                self._scheduled.cancel()
            self._socket.close(linger=0)

    def _look_again(self) -> None:
        if self._scheduled is None and not self._draining and not self._socket.closed:
            self._scheduled = self._loop.call_soon(self.drain)
