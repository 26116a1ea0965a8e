"""One connection of a client, from its first attempt to its end, and the calls that are open on it.

A connection that ends is never made again: what was queued would be delivered long after its caller
has given up (docs/decisions/0014). Every open call fails immediately. Invariant: an open call gets
what arrived before the end, then its error; nothing waits on a connection that is over.
"""

import asyncio
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from kontrol.rpc.channel import Channel, Channels, Illegal, Lost, Side
from kontrol.rpc.errors import LostRemote, ProtocolError, RpcError
from kontrol.rpc.events import Beat, Event, Failure, More, Open
from kontrol.rpc.limits import Limits
from kontrol.rpc.pulse import HeartbeatTimer
from kontrol.rpc.security import z85
from kontrol.rpc.security.keys import Pair
from kontrol.rpc.sockets import endpoint, keep_alive, why_unreachable
from kontrol.rpc.transport import Link
from kontrol.rpc.wire import Codec, Malformed, Message
from kontrol.rpc.zmtp.machine import CLIENT, Machine, Mismatch, Rejected, Violation
from kontrol.rpc.zmtp.mechanism import Mechanism, Null

_KEYS_ONLY = "not without keys (KONTROL_KEYS)"
_NO_ZEROMQ = f"it speaks no ZeroMQ, or {_KEYS_ONLY}"
_METADATA = {b"Socket-Type": CLIENT.socket_type}
_BUFFER = 16 * 1024  # bytes read in one turn of the loop


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a caller proves, its own `pair`, and what it wants proved: the `server`'s public key."""

    pair: Pair
    server: str

    def mechanism(self) -> Mechanism:
        """Return the mechanism of a new connection."""
        from kontrol.rpc.zmtp.curve import CurveClient  # libsodium is loaded where needed

        return CurveClient(self.pair.binary(), z85.decode(self.server), _METADATA, os.urandom)


class Calling(Channel):
    """An open channel of the client, with what has arrived on it."""

    __slots__ = ("arrived", "error", "id", "wake")

    def __init__(self, id: str, now: float, heartbeat: float, window: int) -> None:  # noqa: A002 - the wire's word
        super().__init__(Side.CALLER, now, heartbeat=heartbeat, window=window)
        self.id = id
        self.arrived: deque[Event] = deque()
        self.error: RpcError | None = None
        self.wake: asyncio.Future[None] | None = None

    def fail(self, error: RpcError) -> None:
        """End the call with an error, after what has arrived before it."""
        self.error = self.error or error
        self.awaken()

    def awaken(self) -> None:
        """Let the caller look."""
        if self.wake is not None and not self.wake.done():
            self.wake.set_result(None)

    async def next(self, deadline: float | None) -> Event | None:
        """Return the next event, or None past the deadline (in loop time). Raises `RpcError`."""
        loop = asyncio.get_running_loop()
        while not self.arrived:
            if self.error is not None:
                raise self.error
            if deadline is not None and loop.time() >= deadline:
                return None
            self.wake = loop.create_future()
            timer = loop.call_at(deadline, self.awaken) if deadline is not None else None
            try:
                await self.wake
            finally:
                if timer is not None:
                    timer.cancel()
        return self.arrived.popleft()


class Connection(Link):
    """A connection to the address `host`. `connect` it first, once."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        heartbeat: float,
        limits: Limits,
        credentials: Credentials | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        mechanism = Null(_METADATA) if credentials is None else credentials.mechanism()
        machine = Machine(CLIENT, mechanism, limits, loop.time())
        super().__init__(machine, limits, loop, memoryview(bytearray(_BUFFER)))
        self.where = endpoint(host, port)
        self.mistaken = False
        """Whether it ended because, as far as is known, the peer does not have the expected key."""
        self.server = "" if credentials is None else credentials.server
        """The public key that the peer has to prove; empty without keys."""
        self._address = host, port
        self._heartbeat = heartbeat
        self._codec = Codec(limits)
        self._ids = f"{os.urandom(8).hex()}-"  # unlike those of any other connection
        self._made = 0
        self._channels: Channels[str, Calling] = Channels()
        self._shaken: asyncio.Future[None] = loop.create_future()
        self._pulse = HeartbeatTimer(self._channels, self._beat, lambda _: self.behind, loop)

    async def connect(self) -> None:
        """Connect, and complete the handshake. Raises `LostRemote`."""
        host, port = self._address
        try:
            async with asyncio.timeout(self._limits.deaf):
                await self._loop.create_connection(lambda: self, host, port)
            await self._shaken
        except OSError as error:
            self.ended = f"{self.where}: {why_unreachable(error)}"
        except asyncio.CancelledError:
            self.close("no call waits for it any more")
            raise
        if self.ended is not None:
            raise LostRemote(self.ended)

    async def open(self, event: Open) -> Calling:
        """Open a channel. Raises `Unsendable`, `LostRemote`."""
        channel = Calling(self._new_id(), self._loop.time(), self._heartbeat, self._limits.window)
        frame = self._codec.encode(Message(channel.id, None, event))
        await self.deliver(lambda: self.send((b"", frame)))
        channel.send(event)
        self._channels.add(channel.id, channel)
        self._pulse.start()
        return channel

    def emit(self, channel: Calling, event: Event) -> None:
        """Send an event of an open channel; it is dropped if the peer leaves too much unread."""
        channel.send(event)
        frame = self._codec.encode(Message(self._new_id(), channel.id, event))
        if self.ended is None:
            self.send((b"", frame))

    def release(self, channel: Calling) -> None:
        """Forget a channel, and notify the peer if it still has to answer."""
        self._channels.remove(channel.id)
        if not channel.closed and channel.error is None:
            self.emit(channel, Failure("Cancelled", "the caller has given up", ""))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with the greeting."""
        keep_alive(transport.get_extra_info("socket"), self._limits.deaf)
        super().connection_made(transport)

    def close(self, reason: str, *, tell: bytes = b"", error: Exception | None = None) -> None:
        """Close the connection; every open call fails."""
        super().close(f"{self.where}: {self._explained(reason, error)}", tell=tell, error=error)

    def _explained(self, reason: str, error: Exception | None) -> str:
        """Return the reason of an end in a caller's words."""
        keyed, shaken = bool(self.server), self._shaken.done()
        if isinstance(error, Rejected):
            what = "the connection was closed" if shaken else "it refused the connection"
            told = f"{what}: {reason}" if reason else what
            return told if shaken or not keyed else "it does not accept our key"
        if isinstance(error, Mismatch):
            return "it uses no keys" if keyed else f"it speaks {_KEYS_ONLY}"
        if error is None or shaken:
            return reason
        # A server sends nothing to a client that expects another key of it, and closes.
        self.mistaken = keyed
        if keyed:
            return "it does not have the key that we expect"
        broken = isinstance(error, Violation)
        return f"it does not speak ZeroMQ as we do: {reason}" if broken else _NO_ZEROMQ

    def _met(self, metadata: Mapping[bytes, bytes]) -> None:  # noqa: ARG002 - nothing else counts
        if not self._shaken.done():
            self._shaken.set_result(None)

    def _over(self, reason: str, error: Exception | None) -> None:  # noqa: ARG002 - it is explained
        if not self._shaken.done():
            self._shaken.set_result(None)
        self._pulse.stop()
        for channel in self._channels:
            self._fail(channel, LostRemote(reason))

    def _new_id(self) -> str:
        self._made += 1
        return f"{self._ids}{self._made:x}"

    def _received(self, parts: list[bytes]) -> None:
        try:
            message = self._codec.decode(parts[-1])
        except Malformed as malformed:
            if isinstance(malformed.to, str) and (channel := self._channels.get(malformed.to)):
                self._fail(channel, ProtocolError(f"{self.where} answered nonsense: {malformed}"))
            return
        channel = self._channels.get(message.to) if isinstance(message.to, str) else None
        if channel is None:
            return  # the answer to a call that was given up
        try:
            channel.receive(message.event, self._loop.time())
        except Illegal as illegal:
            self._fail(channel, ProtocolError(f"{self.where}: {illegal}"))
            return
        if channel.closed:
            self._channels.remove(channel.id)
        if not isinstance(message.event, Beat | More):
            channel.arrived.append(message.event)
            channel.awaken()

    def _beat(self, channel: Calling, verdict: Beat | Lost) -> None:
        if isinstance(verdict, Beat):
            self.emit(channel, verdict)
        else:
            reason = f"no heartbeat for {verdict.silence:.1f} s"
            self._fail(channel, LostRemote(f"{self.where}: {reason}"))

    def _fail(self, channel: Calling, error: RpcError) -> None:
        self._channels.remove(channel.id)
        channel.fail(error)
