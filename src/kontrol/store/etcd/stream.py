"""How long to wait for a member, and a two-way stream of messages that other tasks can end."""

import asyncio
from collections import deque
from collections.abc import Callable

from kontrol.store.etcd.connection import Connection
from kontrol.store.etcd.grpc import Splitter, framed
from kontrol.store.etcd.messages import Method, Wire
from kontrol.store.protocol import Unavailable

Sink = Callable[[list[bytes]], None]


class Pace:
    """How long one member takes to answer, from its answers and from timeouts.

    A timeout that a slow etcd can never meet would end every call and open every stream again,
    without end. So timeouts grow with the time that answers take, up to `most`, and shrink with it.
    """

    def __init__(self, most: float) -> None:
        self.seconds = 0.0
        self._most = most

    def timeout(self, usual: float, seconds: float | None = None) -> float:
        """Return the seconds to wait for an answer that a healthy member gives in `usual`.

        With `seconds`, where answers take that long.
        """
        seconds = self.seconds if seconds is None else seconds
        return min(max(usual, 2 * seconds), max(usual, self._most))

    def answered(self, seconds: float) -> None:
        """Note an answer that took that long."""
        self.seconds = max(seconds, self.seconds / 2)

    def timed_out(self, seconds: float) -> None:
        """Note that there was no answer in that time."""
        self.seconds = max(seconds, self.seconds)


class Stream:
    """One open stream. `received` is the loop time of the last message, at first `opened`.

    With a `sink`, messages go there as they come, and it must not raise. Otherwise `receive`
    returns them one by one, and a member that sends more than are received is held back.
    """

    def __init__(
        self,
        connection: Connection,
        headers: bytes,
        method: Method,
        *,
        pace: Pace,
        sink: Sink | None = None,
    ) -> None:
        self.endpoint = connection.endpoint
        self.pace = pace
        self.splitter = Splitter(method.most)
        self._method = method
        self._seconds = pace.seconds
        self._loop = asyncio.get_running_loop()
        self.opened = self.received = self._loop.time()
        self._sink = sink
        self._unread: deque[tuple[bytes, int]] = deque()  # messages, and bytes to credit
        self._end: BaseException | None = None
        self._news = asyncio.Event()  # a message came, or the end
        self._connection = connection
        self._stream = connection.open(headers, self)

    def timeout(self, usual: float) -> float:
        """Return the seconds to wait for a message, as `Pace` has it, but no more than at first.

        Otherwise each of several streams to one stalled member would make the next wait longer.
        """
        self._seconds = min(self._seconds, self.pace.seconds)
        return self.pace.timeout(usual, self._seconds)

    def send(self, message: Wire) -> None:
        """Send a message, in one write with the others of this turn of the loop."""
        self.send_framed(framed(message.SerializeToString()))

    def send_framed(self, messages: bytes) -> None:
        """Send encoded messages that have their prefixes."""
        self._connection.send(self._stream, messages)

    async def receive(self) -> Wire:
        """Return the next message. Raises what ended the stream, once all were received."""
        while not self._unread:
            if self._end is not None:
                raise self._end
            self._news.clear()
            await self._news.wait()
        message, size = self._unread.popleft()
        self._connection.credit(self._stream, size)
        return self._method.decode(message, self.endpoint)

    async def done(self) -> None:
        """Wait for the end. Raises what ended the stream."""
        while self._end is None:
            self._news.clear()
            await self._news.wait()
        raise self._end

    def give_up(self, reason: BaseException) -> None:
        """End the stream; `receive` and `done` raise `reason`."""
        self._unread.clear()
        self.ended(reason)
        self.close()

    def close(self) -> None:
        """End the stream."""
        self._connection.give_up(self._stream)

    # What the connection calls.

    def arrived(self, messages: list[bytes], size: int) -> int:
        """See `Call`."""
        if messages:
            self.received = self._loop.time()
            if self._sink is not None:
                self._sink(messages)
                return size
            self._unread.extend((message, 0) for message in messages)
            self._news.set()
        if not self._unread:
            return size  # a part of a message that the reader waits for
        last, before = self._unread[-1]
        self._unread[-1] = last, before + size
        return 0

    def ended(self, error: BaseException | None) -> None:
        """See `Call`."""
        if self._end is None:
            self._end = error or Unavailable(f"etcd at {self.endpoint} ended the stream")
            self._news.set()
