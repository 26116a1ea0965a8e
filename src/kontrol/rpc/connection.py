"""One connection of a client, from its first attempt to its end, and the calls that are open on it.

A connection ends permanently when TCP says that it is refused or closed: ZeroMQ would go on
reconnecting silently, and later deliver calls that their caller has long given up. Here every open
call fails immediately, and what was queued is dropped. Invariant: an open call gets what arrived
before the end, then its error; nothing waits on a connection that is over.
"""

import asyncio
import secrets
from collections import deque

import zmq
from zmq.utils.monitor import parse_monitor_message

from kontrol.rpc.channel import Channel, Channels, Illegal, Lost, Side
from kontrol.rpc.errors import LostRemote, ProtocolError, RpcError
from kontrol.rpc.events import Beat, Event, Failure, More, Open
from kontrol.rpc.limits import Limits
from kontrol.rpc.pulse import HeartbeatTimer
from kontrol.rpc.sockets import Context, Credentials, dealer
from kontrol.rpc.transport import Transport
from kontrol.rpc.wire import Codec, Malformed, Message

_KEYS_ONLY = "not without keys (KONTROL_KEYS)"
_NO_KEYS = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)

_ENDINGS = {
    int(zmq.EVENT_CLOSED): "no connection could be made",
    int(zmq.EVENT_DISCONNECTED): "the connection was closed",
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): f"it speaks no ZeroMQ, or {_KEYS_ONLY}",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "it does not speak ZeroMQ as we do",
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "it does not accept our key",
}
# A server sends nothing to a client that expects another key of it, and closes.
_MISTAKES = {
    int(zmq.EVENT_DISCONNECTED),
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL),
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL),
}


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


class Connection:
    """A ZeroMQ dealer connected to `where`, an endpoint with a numeric address."""

    def __init__(
        self,
        where: str,
        context: Context,
        *,
        heartbeat: float,
        limits: Limits,
        credentials: Credentials | None = None,
    ) -> None:
        self.ended: LostRemote | None = None
        """Why the connection is over, once it is."""
        self.mistaken = False
        """Whether it ended because, as far as is known, the peer does not have the expected key."""
        self.unmade = False
        """Whether it ended because it could not be made, for a reason that ZeroMQ keeps."""
        self.server = "" if credentials is None else credentials.server
        """The public key that the peer has to prove; empty without keys."""
        self.where = where
        self._heartbeat = heartbeat
        self._limits = limits
        self._codec = Codec(limits)
        self._ids = f"{secrets.token_hex(8)}-"  # unlike those of any other connection
        self._made = 0
        self._loop = asyncio.get_running_loop()
        self._channels: Channels[str, Calling] = Channels()
        self._keyed = credentials is not None
        self._shaken: asyncio.Future[None] = self._loop.create_future()
        socket = self._socket = dealer(context, where, limits, credentials)
        events = int(zmq.EVENT_HANDSHAKE_SUCCEEDED) if credentials else 0
        for event in _ENDINGS:
            events |= event
        self._monitor = Transport(socket.get_monitor_socket(events), self._noticed, self._loop)
        self._transport = Transport(socket, self._receive, self._loop)
        self._pulse = HeartbeatTimer(self._channels, self._beat, self._transport, self._loop)
        socket.connect(where)

    async def shaken(self) -> None:
        """Wait until both ends have proved their keys, or the connection `ended`."""
        await self._shaken

    async def open(self, event: Open) -> Calling:
        """Open a channel. Raises `Unsendable`, `LostRemote`."""
        channel = Calling(self._new_id(), self._loop.time(), self._heartbeat, self._limits.window)
        frame = self._codec.encode(Message(channel.id, None, event))
        await self._transport.deliver((b"", frame))
        channel.send(event)
        self._channels.add(channel.id, channel)
        self._pulse.start()
        return channel

    def emit(self, channel: Calling, event: Event) -> None:
        """Send an event of an open channel; it is dropped if the peer leaves too much unread."""
        channel.send(event)
        frame = self._codec.encode(Message(self._new_id(), channel.id, event))
        if self.ended is None:
            self._transport.send((b"", frame))

    def release(self, channel: Calling) -> None:
        """Forget a channel, and notify the peer if it still has to answer."""
        self._channels.remove(channel.id)
        if not channel.closed and channel.error is None:
            self.emit(channel, Failure("Cancelled", "the caller has given up", ""))

    def close(self, reason: str) -> None:
        """Close the connection; every open call fails."""
        if self.ended is not None:
            return
        self.ended = LostRemote(f"{self.where}: {reason}")
        if not self._shaken.done():
            self._shaken.set_result(None)
        self._pulse.stop()
        # In this order: ZeroMQ's I/O thread, and every socket with it, would wait forever to
        # report an event to a monitor that is closed but not disabled.
        self._socket.disable_monitor()
        self._monitor.close()
        self._transport.close()
        for channel in self._channels:
            self._fail(channel, LostRemote(str(self.ended)))

    def _new_id(self) -> str:
        self._made += 1
        return f"{self._ids}{self._made:x}"

    def _receive(self, frames: list[zmq.Frame]) -> None:
        try:
            message = self._codec.decode(frames[-1].bytes)
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

    def _noticed(self, frames: list[zmq.Frame]) -> None:
        """End with the connection: ZeroMQ's monitor says that it is over."""
        message = parse_monitor_message([frame.bytes for frame in frames])
        event, value = int(message["event"]), int(message["value"])
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._shaken.set_result(None)
            return
        while self._transport.drain():
            pass  # what arrived before the end still counts
        reason = _ENDINGS.get(event, "the connection ended")
        self.unmade = event == zmq.EVENT_CLOSED
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == _NO_KEYS:
            reason = "it uses no keys" if self._keyed else f"it speaks {_KEYS_ONLY}"
        elif self._keyed and not self._shaken.done() and event in _MISTAKES:
            self.mistaken = True
            reason = "it does not have the key that we expect"
        self.close(reason)
