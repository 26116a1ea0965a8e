"""A ZeroRPC server: what ZeroMQ calls a router.

One callback takes each message from its connection to its channel; only a call that is accepted
costs a task, which runs the handler and is cancelled when its caller is lost or gives up. Whatever
can be answered is answered: an event that is no call gets an error, without `response_to` if not
even its message id is known (callers ignore that one, a person with a packet dump does not).

Invariants: every open channel has exactly one handler task, and its caller gets at most one ending.
`serve` returns only when all handlers have ended. With keys, nothing is started for a message whose
key is not accepted at that moment; calls and connections end within a second of their key's
removal. A call ends with its connection.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from kontrol.listener import BindError
from kontrol.rpc.calls import Calls, Envelope, Serving
from kontrol.rpc.channel import Illegal, Lost
from kontrol.rpc.errors import LostRemote, Refused, Unsendable
from kontrol.rpc.events import Beat, Done, Event, Item, Open, Reply, Result, failure
from kontrol.rpc.limits import Limits
from kontrol.rpc.methods import Call, Catalog, Method, restricted
from kontrol.rpc.peers import Peer, Peers
from kontrol.rpc.pulse import HeartbeatTimer
from kontrol.rpc.security.keys import Keyring, Kind, ServerKind
from kontrol.rpc.wire import Codec, Id, Malformed, Message, peek
from kontrol.rpc.zmtp.machine import SERVER
from kontrol.rpc.zmtp.mechanism import Mechanism, Null

if TYPE_CHECKING:
    from kontrol.rpc.security.gate import Gate

__all__ = ["Call", "Limits", "Method", "Peer", "Server", "Shortcut", "restricted"]

_log = logging.getLogger(__name__)

_BATCH = 64
"""Items of a stream sent in one turn of the loop."""

_REVOKED = "the key of this connection is not accepted any more"

_NOTICE = 0.5
"""Seconds in which a connection whose key was removed is still told so."""

Shortcut = Callable[[bytes], "asyncio.Future[Any] | None"]
"""Answers a call whose only argument is a text, by the bytes of that.

It returns None, or a future that comes to None, for a call that is to be decoded and handled as any
other. The future comes to the answer, or raises as a handler does, within seconds.
"""


class Server:
    """Serves `methods` to any number of peers. `bind`, then `serve`.

    `heartbeat` is in seconds and should be that of the callers (ZeroRPC's default is 5). With
    `keys`, peers must prove theirs, and the server proves that it is of the kind `own`. Raises
    `KeysError` if `keys` lack that secret key. `shortcuts`, by the names of methods, are asked
    first. What they answer costs no channel, task or timer.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        *,
        name: str = "kontrol",
        limits: Limits = Limits(),  # noqa: B008 - frozen
        heartbeat: float = 5.0,
        keys: Keyring | None = None,
        own: ServerKind = "master",
        shortcuts: Mapping[str, Shortcut] = MappingProxyType({}),
    ) -> None:
        self._catalog = Catalog(name, methods)
        self._limits = limits
        self._heartbeat = heartbeat
        self._gate = None if keys is None else _gate(keys, own)
        self._codec = Codec(limits)
        self._calls = Calls(limits)
        self._tasks: set[asyncio.Task[object]] = set()
        self._emitted = 0
        self._shortcuts = shortcuts
        self._peers: Peers | None = None
        self._pulse: HeartbeatTimer[tuple[Envelope, Id], Serving] | None = None

    async def bind(self, host: str, port: int) -> int:
        """Listen on `host` ("" or "*": all addresses, IPv6 too) and return the port.

        Port 0 lets the system choose. Raises `BindError`.
        """
        if self._peers is not None:
            raise BindError("the server is bound already")
        peers = Peers(
            self._limits, mechanism=self._mechanism, receive=self._receive, ended=self._lost
        )
        bound = await peers.bind(host, port)
        self._peers = peers
        return bound

    async def serve(self) -> None:
        """Serve until cancelled; then cancel and await the handlers, and close the connections."""
        if self._peers is None:
            raise BindError("serve() was called before bind()")
        self._pulse = HeartbeatTimer(
            self._calls.channels,
            self._beat,
            lambda channel: channel.peer.behind,
            asyncio.get_running_loop(),
        )
        needed = {self._own(self._peers.serve())}
        if self._gate is not None:
            needed.add(self._own(self._gate.watch(self._revoke)))
        try:
            ended, _ = await asyncio.wait(needed, return_when=asyncio.FIRST_COMPLETED)
            for one in ended:
                one.result()
        finally:
            self.close()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            await self._peers.closed()

    def close(self) -> None:
        """Close the socket. `serve` does so itself, if it came to run at all."""
        if self._pulse is not None:
            self._pulse.stop()
        if self._peers is not None:
            self._peers.close()

    # Connections.

    def _mechanism(self, peer: Peer) -> Mechanism:
        if self._gate is None:
            return Null({b"Socket-Type": SERVER.socket_type})
        return self._gate.mechanism(peer)

    def _lost(self, peer: Peer, reason: str, error: Exception | None) -> None:
        """End the calls of a connection that is over."""
        if self._gate is not None and not peer.met:
            self._gate.unmet(peer, error)
        for channel in self._calls.of(peer):
            self._drop(channel, reason)

    # What arrives.

    def _receive(self, peer: Peer, parts: list[bytes]) -> None:
        """Take one message: what routers have put first, an empty part (or none), and an event."""
        if self._shortcuts and len(parts) == 2 and self._answer_shortly(peer, parts):
            return
        self._decode(peer, parts)

    def _answer_shortly(self, peer: Peer, parts: list[bytes]) -> bool:
        """Answer a call by a shortcut, if there is one that can; else return False."""
        call = peek(parts[-1])
        shortcut = None if call is None else self._shortcuts.get(call[1])
        if call is None or shortcut is None or peer.calls >= self._limits.calls_per_peer:
            return False
        try:
            caller = None if self._gate is None else self._gate.caller(peer)[0]
            self._catalog.find(call[1], ("",)).permit(caller)
        except Refused:
            return False  # it is told why
        answer = shortcut(call[2])
        if answer is None:
            return False
        peer.calls += 1
        answer.add_done_callback(partial(self._short_answer, peer, parts, call[0], call[1]))
        return True

    def _short_answer(
        self,
        peer: Peer,
        parts: list[bytes],
        to: Id,
        name: str,
        answer: "asyncio.Future[Any]",
    ) -> None:
        """Send the answer of a shortcut, if the connection is still there."""
        peer.calls -= 1
        if answer.cancelled():
            return
        error = answer.exception()  # taken, though its caller may be gone
        if peer.ended is not None or peer.revoked:
            return
        if error is None and answer.result() is None:
            self._decode(peer, parts)
            return
        try:
            frame = self._encode(to, _ending(name, answer))
        except Unsendable as error:
            frame = self._encode(to, failure("Unsendable", str(error)))
        if not peer.send((b"", frame)):
            peer.calls += 1
            waiting = self._own(peer.deliver(partial(self._send_late, peer, frame)))
            waiting.add_done_callback(lambda _: _one_less(peer))

    def _send_late(self, peer: Peer, frame: bytes) -> bool:
        return peer.ended is not None or peer.send((b"", frame))

    def _decode(self, peer: Peer, parts: list[bytes]) -> None:
        envelope = (peer, tuple(parts[:-2]))
        if len(parts) >= self._limits.parts:
            reason = f"{len(parts) + 1} parts are over the limit of {self._limits.parts}"
            self._refuse((peer, ()), None, "ProtocolError", reason)
            return
        try:
            message = self._codec.decode(parts[-1])
        except Malformed as malformed:
            self._malformed(envelope, malformed)
            return
        if isinstance(message.event, Open):
            self._open(envelope, message, message.event)
        else:
            self._follow_up(envelope, message)

    def _malformed(self, envelope: Envelope, malformed: Malformed) -> None:
        if malformed.to is None:
            self._refuse(envelope, malformed.id, "ProtocolError", str(malformed))
        elif (channel := self._calls.get(envelope, malformed.to)) is not None:
            self._break(channel, str(malformed))

    def _open(self, envelope: Envelope, message: Message, event: Open) -> None:
        """Start the handler of a call, or answer why not."""
        assert message.id is not None  # noqa: S101 - the codec's promise
        loop = asyncio.get_running_loop()
        peer = envelope[0]
        caller: Kind | None = None
        key = ""
        try:
            if self._gate is not None:
                caller, key = self._gate.caller(peer)
            method = self._catalog.find(event.name, event.args)
            method.permit(caller)
            self._calls.check(envelope, message.id)
        except Refused as refused:
            self._refuse(envelope, message.id, refused.name, refused.message)
            return
        channel = Serving(envelope, message.id, loop.time(), self._heartbeat)
        channel.receive(event, loop.time())
        self._calls.add(channel)
        call = channel.call = Call(event.name, event.args, peer.name, caller, key)
        answer = method.handler(call, *call.args)
        if method.streams:
            answer = self._stream(channel, cast("AsyncGenerator[object, None]", answer))
        channel.task = self._own(cast("Coroutine[Any, Any, object]", answer))
        channel.task.add_done_callback(
            lambda task: self._end(channel, _ending(method.name, task, streams=method.streams))
        )
        if self._pulse is not None:
            self._pulse.start()

    def _follow_up(self, envelope: Envelope, message: Message) -> None:
        """Take an event of an open channel; of any other it is too late, and ignored."""
        channel = self._calls.get(envelope, cast("Id", message.to))
        if channel is None:
            return
        starved = not channel.credit
        try:
            channel.receive(message.event, asyncio.get_running_loop().time())
        except Illegal as illegal:
            self._break(channel, str(illegal))
            return
        if channel.closed:
            self._drop(channel, "the caller gave up")
        elif starved and channel.owed is not None:
            self._end(channel, channel.owed)
        elif starved and channel.room is not None and not channel.room.done():
            channel.room.set_result(None)

    def _revoke(self) -> None:
        """End the calls and connections of keys that are not accepted any more."""
        if self._gate is None or self._peers is None:
            return
        for peer in self._peers.roster:
            if not peer.met or peer.revoked or self._gate.accepts(peer.public):
                continue
            peer.revoked = True
            for channel in self._calls.of(peer):
                self._refuse(channel.envelope, channel.id, "Forbidden", _REVOKED)
                self._drop(channel, _REVOKED)
            asyncio.get_running_loop().call_later(_NOTICE, peer.close, _REVOKED)

    def _beat(self, channel: Serving, verdict: Beat | Lost) -> None:
        """Send a channel's heartbeat, or end it because its peer is lost."""
        if isinstance(verdict, Lost):
            self._drop(channel, f"no heartbeat for {verdict.silence:.1f} s")
        else:
            self._emit(channel, verdict)

    # What handlers say.

    def _own(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        """Run a task that `serve` awaits before it returns."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _stream(self, channel: Serving, items: AsyncGenerator[object, None]) -> None:
        """Send the items as fast as the caller asks for them.

        Now and then other tasks get a turn: a handler that has all items at hand would otherwise go
        on without end, even for a caller that is gone.
        """
        sent = 0
        async with contextlib.aclosing(items):
            async for item in items:
                sent += 1
                if not sent % _BATCH:
                    await asyncio.sleep(0)
                while not channel.credit:
                    channel.room = asyncio.get_running_loop().create_future()
                    await channel.room
                await channel.peer.deliver(partial(self._emit, channel, Item(item)))

    def _break(self, channel: Serving, reason: str) -> None:
        """End a channel whose caller broke the protocol."""
        if self._calls.has(channel):
            self._refuse(channel.envelope, channel.id, "ProtocolError", reason)
            self._drop(channel, reason)

    def _end(self, channel: Serving, ending: Reply) -> None:
        """End an open channel, now or when its caller has room for it."""
        channel.owed = ending
        if channel.credit and not self._settle(channel):
            channel.task = self._own(channel.peer.deliver(partial(self._settle, channel)))

    def _settle(self, channel: Serving) -> bool:
        """Send the ending that a channel owes, if it is still open; False if it must wait."""
        if not self._calls.has(channel) or channel.owed is None:
            return True
        try:
            sent = self._emit(channel, channel.owed)
        except Unsendable as error:
            sent = self._emit(channel, failure("Unsendable", str(error)))
        if sent:
            self._calls.remove(channel)
        return sent

    # What leaves.

    def _emit(self, channel: Serving, event: Event) -> bool:
        """Send an event; False if the peer leaves too much unread.

        A peer that is not connected any more is lost: its channel is dropped. Raises `Unsendable`.
        """
        frame = self._encode(channel.id, event)
        try:
            sent = self._send(channel.envelope, frame)
        except LostRemote as lost:
            self._drop(channel, str(lost))
            return True
        if sent:
            channel.send(event)
        return sent

    def _refuse(self, envelope: Envelope, to: Id | None, error: str, message: str) -> None:
        """Answer what opened no channel."""
        _log.debug("refused an event of %s: %s: %s", envelope[0].name, error, message)
        with contextlib.suppress(LostRemote):
            self._send(envelope, self._encode(to, failure(error, message)))

    def _encode(self, to: Id | None, event: Event) -> bytes:
        self._emitted += 1
        return self._codec.encode(Message(f"{self._emitted:016x}", to, event))

    def _send(self, envelope: Envelope, frame: bytes) -> bool:
        peer, hops = envelope
        return peer.send((*hops, b"", frame))

    def _drop(self, channel: Serving, reason: str) -> None:
        """Forget a channel whose caller is gone, and cancel its handler."""
        if self._calls.remove(channel) and channel.task is not None:
            _log.debug("call of %s cancelled: %s", channel.peer.name, reason)
            if channel.call is not None:
                channel.call.gone = reason
            channel.task.cancel()


def _gate(keys: Keyring, own: ServerKind) -> "Gate":
    from kontrol.rpc.security.gate import Gate  # it loads libsodium

    return Gate(keys, own)


def _ending(name: str, outcome: "asyncio.Future[Any]", *, streams: bool = False) -> Reply:
    """Return the answer that the outcome of a method is."""
    if outcome.cancelled():
        return failure("InternalError", f"{name} was cancelled")
    error = outcome.exception()
    if error is None:
        return Done() if streams else Result(outcome.result())
    if isinstance(error, Refused):
        return failure(error.name, error.message)
    if isinstance(error, Unsendable):
        return failure("Unsendable", str(error))
    _log.error("method %s failed", name, exc_info=error)
    reason = f"{type(error).__name__} in {name}; the server's log has the details"
    return failure("InternalError", reason)


def _one_less(peer: Peer) -> None:
    peer.calls -= 1
