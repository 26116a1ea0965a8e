"""A ZMTP connection on the event loop: one protocol object, without a thread, a task or a queue.

What is read goes through the machine to `_received`, message by message, in the loop's callback.
So that one peer's flood delays no other for long, each connection has a short time per turn of the
loop; with more to do it stops reading and goes on in the next turn. What is sent in one turn goes
out in one piece at its end.

A peer that takes in less than it is sent is noticed by the bytes that wait for it: `send` refuses
more, `deliver` waits, and if it takes in nothing for `Limits.deaf` seconds, the connection ends.

Invariant: `_over` is called exactly once, when the connection is over for its users; `_gone`, once
its socket is closed.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from kontrol.rpc.errors import LostRemote
from kontrol.rpc.limits import Limits
from kontrol.rpc.zmtp.machine import Machine, Ready, Violation

_SLICE = 0.001
"""Seconds of a turn of the loop that one connection may take, unless one message takes longer."""

_LINGER = 1.0
"""Seconds after a close in which the peer may take in what was sent before it."""


class Link(asyncio.BufferedProtocol, ABC):
    """One connection. `buffer` is for reading, and may serve all connections of the loop.

    (Nothing else runs between `get_buffer` and `buffer_updated` of a selector's event loop.)
    """

    __slots__ = (
        *("_buffer", "_corked", "_flushing", "_limits", "_loop", "_paused", "_timer", "_transport"),
        *("_turn", "_wake", "behind", "ended", "machine"),
    )

    def __init__(
        self, machine: Machine, limits: Limits, loop: asyncio.AbstractEventLoop, buffer: memoryview
    ) -> None:
        self.machine = machine
        self.ended: str | None = None
        """Why the connection is over, once it is."""
        self.behind = False
        """Whether more has arrived than was read."""
        self._limits = limits
        self._loop = loop
        self._buffer = buffer
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._corked = False
        self._flushing = False
        self._paused = False
        self._turn: asyncio.Lock | None = None
        self._wake: asyncio.Future[None] | None = None

    # What a connection is used for.

    @abstractmethod
    def _met(self, metadata: Mapping[bytes, bytes]) -> None:
        """The handshake is complete."""

    @abstractmethod
    def _received(self, parts: list[bytes]) -> None:
        """Take a message."""

    def _held(self) -> None:
        """Incomplete messages of the peer may have grown or shrunk."""

    @abstractmethod
    def _over(self, reason: str, error: Exception | None) -> None:
        """The connection is over; `error` says why unless this end chose to close it."""

    def _gone(self) -> None:
        """The socket is closed."""

    # Sending.

    def send(self, parts: Sequence[bytes]) -> bool:
        """Send a message; returns False, and sends nothing, if the peer leaves too much unread.

        Raises `LostRemote` if the connection is over.
        """
        if self.ended is not None:
            raise LostRemote(self.ended)
        machine = self.machine
        if self._paused or machine.queued >= self._limits.unread:
            return False
        machine.send(parts)
        if not self._corked and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        return True

    async def deliver(self, send: Callable[[], bool]) -> None:
        """Call `send` until it returns True, which it does when the peer has room. In turn."""
        if self._turn is None:
            self._turn = asyncio.Lock()
        async with self._turn:
            while not send():
                if not self._paused:
                    self._flush()
                if self._paused and self.ended is None:
                    self._wake = self._loop.create_future()
                    await self._wake

    def close(self, reason: str, *, tell: bytes = b"", error: Exception | None = None) -> None:
        """End the connection: `tell` the peer, and let it take in what was sent before."""
        if self.ended is not None:
            return
        self.ended = reason
        self.machine.end(tell)
        self._disarm()
        self._awaken()
        transport = self._transport
        if transport is not None:
            self._flush()
            transport.close()
            if transport.get_write_buffer_size():
                self._timer = self._loop.call_later(_LINGER, transport.abort)
        self._over(reason, error)

    def abort(self) -> None:
        """Close the socket immediately."""
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        self._flushing = False
        transport = self._transport
        if transport is None or not self.machine.queued:
            return
        transport.write(self.machine.take())
        limits = self._limits
        most = 2 * (limits.unread + limits.frame)  # heartbeats are answered, read or not
        if self._paused and self.ended is None and transport.get_write_buffer_size() > most:
            self._lose("the peer reads nothing of what is sent to it")

    def _lose(self, reason: str, error: Exception | None = None) -> None:
        """End a connection on which nothing more can be sent."""
        self.close(reason, error=error or LostRemote(reason))
        self.abort()

    # The event loop's part.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with the greeting."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._limits.unread)
        if self.ended is not None:  # it was closed before
            self._transport.abort()
            return
        self._arm()
        self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Return where to read to."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        now = self._loop.time()
        self.behind = nbytes == len(self._buffer)
        self.machine.receive(self._buffer[:nbytes].tobytes(), now)
        self._work(now)

    def _work(self, now: float) -> None:
        """Take messages, until there is none, or this turn's time is over."""
        machine, loop = self.machine, self._loop
        self._corked = True
        try:
            while (event := machine.next()) is not None:
                if type(event) is list:
                    self._received(event)
                elif isinstance(event, Ready):
                    self._disarm()
                    self._met(event.metadata)
                elif not self._paused:
                    self._disarm()
                    self._arm()  # a heartbeat may say how long to wait for the next
                if loop.time() - now > _SLICE and machine.pending:
                    self._put_off()
                    break
        except Violation as violation:
            self.close(str(violation), error=violation)
        finally:
            self._corked = False
        self._held()
        if machine.queued:
            self._flush()

    def _put_off(self) -> None:
        if self._transport is not None:
            self.behind = True
            self._transport.pause_reading()
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self.ended is None and self._transport is not None:
            self.behind = False
            self._transport.resume_reading()
            self._work(self._loop.time())

    def eof_received(self) -> None:
        """End: a peer that sends nothing more is not served either."""
        reason = "the connection was closed"
        self.close(reason, error=LostRemote(reason))

    def connection_lost(self, exc: Exception | None) -> None:
        """End, if it is not over yet."""
        reason = "the connection was closed"
        self.close(reason, error=exc or LostRemote(reason))
        self._disarm()
        self._transport = None
        self._gone()

    def pause_writing(self) -> None:
        """Wait until the peer has taken in more."""
        self._paused = True
        self._look(0)

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        if self.ended is None:
            self._disarm()
            self._arm()
        self._awaken()

    def _awaken(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # Time.

    def _look(self, before: int) -> None:
        """Look later whether the peer has taken in anything since there were `before` bytes."""
        transport = self._transport
        if self.ended is not None or transport is None:
            return
        waiting = transport.get_write_buffer_size()
        if before and waiting >= before:
            self._lose(f"the peer has read nothing for {self._limits.deaf:g} s")
            return
        self._disarm()
        self._timer = self._loop.call_later(self._limits.deaf, self._look, waiting)

    def _arm(self) -> None:
        """Look when the machine's time is over, if it has any."""
        if (due := self.machine.due) is not None and not self._paused:
            self._timer = self._loop.call_at(due, self._expire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        try:
            self.machine.expire(self._loop.time())
        except Violation as violation:
            self.close(str(violation), error=violation)
        else:
            self._arm()
