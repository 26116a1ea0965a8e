"""ZMTP 3.1: one end of a connection as a pure state machine, in the manner of h11.

Theory of operation. `receive` takes bytes as they come; `next` returns one event at a time until it
needs more bytes; whatever is to be sent, `take` returns in one piece. A server is a ROUTER, a
client a DEALER: all that ZeroRPC uses. The protocol is in RFC 23 (ZMTP 3.0), RFC 37 (3.1) and RFC
26 (CURVE), at https://rfc.zeromq.org. First comes a greeting of 64 bytes, with the version and the
security mechanism; then the mechanism's handshake, in commands; then messages, in frames, and
commands: PING, answered here, and PONG. What a peer says of itself is checked (its socket type) or
ignored (its identity: the server names its connections).

A server also takes peers of ZMTP 2.0 (RFC 15): they send 12 bytes, and an identity in place of the
handshake. So it sends the rest of its greeting only when it knows the peer's version.

Bounds. A frame is refused by its header, before its body is read; a message by its bytes and the
number of its parts; a handshake by its bytes and its time. Invariant: what is held for a peer is
never more than `Limits.readable`, and what `receive` was given last. Each breach raises
`Violation`, and nothing is read after one; the peer is told why where the protocol can tell.

Pure. Time is an argument: seconds of any monotonic clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Never

from kontrol.rpc.limits import Limits
from kontrol.rpc.zmtp.mechanism import HandshakeError, Mechanism

_MORE, _LONG, _COMMAND = 1, 2, 4  # flags of a frame

_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_VERSION = b"\x03\x01"
_GREETING, _GREETING_2 = 64, 12  # bytes, in ZMTP 3 and in ZMTP 2.0

_MOST_CONTEXT = 16
"""Bytes of a PING that its PONG repeats (RFC 37)."""

_TYPES_2 = {3: b"REQ", 5: b"DEALER", 6: b"ROUTER"}  # numbers that ZMTP 2.0 has for them


class Violation(Exception):
    """The peer broke the protocol or a bound, or has rejected us: the connection is over."""


class Mismatch(Violation):
    """The peer uses another security mechanism."""


class Rejected(Violation):
    """The peer sent an ERROR, which ends the connection."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The handshake is complete: messages may be sent. The names in `metadata` are lower case."""

    metadata: Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Command:
    """A command among messages; nothing is left to do about it."""

    name: bytes


Parts = list[bytes]
"""A message."""

Event = Parts | Ready | Command


class _State(Enum):
    GREETING = auto()
    HANDSHAKE = auto()
    IDENTITY = auto()  # of a ZMTP 2.0 peer
    TRAFFIC = auto()
    OVER = auto()


@dataclass(frozen=True, slots=True)
class Role:
    """What an end is, and the socket types that its peer may have."""

    socket_type: bytes
    peers: frozenset[bytes]
    server: bool


SERVER = Role(b"ROUTER", frozenset((b"DEALER", b"REQ")), server=True)
"""Every ZeroRPC client is a DEALER (its XREQ is an old name of that); a REQ sends the same."""

CLIENT = Role(b"DEALER", frozenset((b"ROUTER",)), server=False)


class Machine:
    """One end, in the given role. `now` is when the connection was made."""

    __slots__ = (
        *("_at", "_began", "_bytes", "_data", "_flags", "_heard", "_limits", "_mechanism"),
        *("_need", "_out", "_partial", "_parts", "_plain", "_role", "_shaken", "_state", "_ttl"),
        *("queued", "version"),
    )

    def __init__(self, role: Role, mechanism: Mechanism, limits: Limits, now: float) -> None:
        self.version = 0
        """The major version of the peer's protocol, once known."""
        self.queued = 0
        """Bytes that `take` would return."""
        self._role = role
        self._mechanism = mechanism
        self._plain = mechanism.name == b"NULL"
        self._limits = limits
        self._began = self._heard = now
        self._ttl = 0.0  # seconds of silence after which the peer wants to be taken for lost
        self._state = _State.GREETING
        self._shaken = 0  # bytes of the handshake
        self._data = b""
        self._at = 0
        self._partial: bytearray | None = None
        self._need = 0
        self._flags = 0
        self._parts: list[bytes] = []
        self._bytes = 0
        self._out: list[bytes] = []
        self._put(_SIGNATURE + _VERSION[:1])
        if not role.server:  # it talks to no ZMTP 2.0, so nothing has to wait for the version
            self._greet()

    # What arrives.

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes of the connection; `next` has what they say."""
        self._heard = now
        if self._state is _State.OVER:
            return
        if self._partial is not None:
            self._partial += data
            if len(self._partial) < self._need:
                return
            data, self._partial = bytes(self._partial), None
        elif self._at < len(self._data):
            data = self._data[self._at :] + data
        self._data, self._at = data, 0

    def next(self) -> Event | None:
        """Return the next event, or None if more bytes are needed. Raises `Violation`."""
        if self._state is _State.GREETING and not self._greeted():
            return None
        if self._state is _State.HANDSHAKE:
            return self._handshake()
        if self._state is _State.IDENTITY:
            return self._identity()
        try:
            return self._traffic() if self._state is _State.TRAFFIC else None
        except HandshakeError as error:
            self._fail(str(error), error.tell)

    @property
    def held(self) -> int:
        """The bytes that are kept of what is not complete."""
        partial = 0 if self._partial is None else len(self._partial)
        return self._bytes + partial + len(self._data) - self._at

    @property
    def pending(self) -> bool:
        """Whether `next` may return something without more bytes."""
        return self._at < len(self._data)

    # Time.

    @property
    def due(self) -> float | None:
        """When `expire` has to be called next; receiving puts it off."""
        if self._state is _State.TRAFFIC:
            return self._heard + self._ttl if self._ttl else None
        return None if self._state is _State.OVER else self._began + self._limits.handshake

    def expire(self, now: float) -> None:
        """Raise `Violation` if the handshake takes too long, or a peer is silent for its TTL."""
        if self.due is None or now < self.due:
            return
        if self._state is _State.TRAFFIC:
            self._fail(f"nothing for the {self._ttl:g} s that its heartbeats allow")
        self._fail(f"no complete handshake in {self._limits.handshake:g} s", b"too slow")

    # What leaves.

    def send(self, parts: Sequence[bytes]) -> None:
        """Send a message of at least one part; only when the handshake is complete."""
        if self._state is not _State.TRAFFIC:
            raise RuntimeError("a message can be sent after the handshake, and before the end")
        last = len(parts) - 1
        for i, part in enumerate(parts):
            self._put_frame(part, _MORE if i < last else 0)

    def end(self, reason: bytes) -> None:
        """Send nothing more but an ERROR with the reason, if the peer can be told."""
        state, self._state = self._state, _State.OVER
        self._data, self._at, self._partial, self._parts = b"", 0, None, []
        self._bytes = 0
        if reason and self.version > 2 and state in (_State.HANDSHAKE, _State.TRAFFIC):
            body = b"\x05ERROR" + bytes((min(len(reason), 255),)) + reason[:255]
            self._put_frame(body, _COMMAND, sealed=state is _State.TRAFFIC)

    def take(self) -> bytes:
        """Return what is to be sent, and forget it."""
        out = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self.queued = 0
        return out

    # The greeting.

    def _greeted(self) -> bool:
        """Take the peer's greeting, if it is complete."""
        data = self._data
        if data and data[0] != _SIGNATURE[0]:
            self._fail("it speaks no ZeroMQ")
        if len(data) < 10:
            self._wait(10)
            return False
        if not data[9] & 1:
            self._fail("it speaks no ZeroMQ")
        if len(data) < 11:
            self._wait(11)
            return False
        self.version = max(2, data[10])
        if data[10] == 0 or (self.version == 2 and not self._role.server):
            self._fail("it speaks a ZeroMQ from before version 4.0, which is too old")
        size = _GREETING if self.version > 2 else _GREETING_2
        if len(data) < size:
            self._wait(size)
            return False
        self._at = size
        if self.version == 2:
            self._greet_2(data[11])
            return True
        if self._role.server:
            self._greet()
        name = data[12:32].rstrip(b"\0")
        if name != self._mechanism.name:
            raise self._over(Mismatch(f"its mechanism is {name.decode('ascii', 'replace')!r:.30}"))
        self._state = _State.HANDSHAKE
        return True

    def _greet(self) -> None:
        """Send the rest of the greeting, and the first command of the handshake."""
        server = bytes((self._role.server and not self._plain,))  # NULL has no roles
        name = self._mechanism.name
        self._put(_VERSION[1:] + name + bytes(20 - len(name)) + server + bytes(31))
        if (command := self._mechanism.start()) is not None:
            self._put_frame(command, _COMMAND, sealed=False)

    def _greet_2(self, number: int) -> None:
        if not self._plain:
            raise self._over(Mismatch("it speaks ZMTP 2.0, which has no keys"))
        if _TYPES_2.get(number) not in self._role.peers:
            self._fail(f"socket type {number} of ZMTP 2.0 is not one that calls")
        self._put(b"\x06\0\0")  # ROUTER, after the version, and an identity of no bytes
        self._state = _State.IDENTITY

    # The handshake.

    def _handshake(self) -> Ready | None:
        limits, mechanism = self._limits, self._mechanism
        try:
            while True:
                body = self._frame(limits.command, limits.handshake_bytes - self._shaken)
                if body is None:
                    return None
                self._shaken += len(body)
                if self._flags & ~_LONG != _COMMAND:
                    self._fail("a message before the handshake", b"expected a command")
                self._if_error(body)
                reply = mechanism.receive(body)
                if reply is not None:
                    self._put_frame(reply, _COMMAND, sealed=False)
                if mechanism.ready:
                    return self._agreed(mechanism.metadata)
        except HandshakeError as error:
            self._fail(str(error), error.tell)

    def _agreed(self, metadata: Mapping[bytes, bytes]) -> Ready:
        kind = metadata.get(b"socket-type", b"")
        if kind not in self._role.peers:
            wanted = b" or ".join(sorted(self._role.peers))
            told = b"Socket-Type: expected " + wanted
            self._fail(f"its socket type is {kind!r:.20}: expected {wanted.decode()}", told)
        self._state = _State.TRAFFIC
        return Ready(metadata)

    def _identity(self) -> Ready | None:
        body = self._frame(255, 255)
        if body is None:
            return None
        if self._flags:
            self._fail("it sends no identity, as ZMTP 2.0 has it")
        self._state = _State.TRAFFIC
        return Ready({})

    # Messages and commands.

    def _traffic(self) -> Parts | Command | None:
        limits = self._limits
        while True:
            body = self._frame(limits.readable, limits.readable - self._bytes)
            if body is None:
                return None
            if self._plain:
                more, command = self._flags & _MORE, self._flags & _COMMAND
            else:
                if self._flags & ~_LONG:  # anyone on the way can set them: those in the box count
                    self._fail(f"an encrypted frame with the flags 0x{self._flags:02x}")
                body, more, command = self._mechanism.unseal(body)
            if command:
                return self._command(body, more=bool(more))
            parts = self._parts
            parts.append(body)
            if not more:
                self._parts, self._bytes = [], 0
                return parts
            self._bytes += len(body)
            if len(parts) >= limits.most_parts:
                told = f"a message of over {limits.most_parts} parts"
                self._fail(told, told.encode())

    def _command(self, body: bytes, *, more: bool) -> Command:
        size = body[0] if body else 0
        name, data = body[1 : 1 + size], body[1 + size :]
        if more or not name or len(name) < size or len(body) > self._limits.command:
            self._fail("a malformed command", b"malformed command")
        self._if_error(body)
        if name == b"PING":
            if not 2 <= len(data) <= 2 + _MOST_CONTEXT:
                self._fail("a malformed PING", b"malformed PING")
            self._ttl = int.from_bytes(data[:2]) / 10
            self._put_frame(b"\x04PONG" + data[2:], _COMMAND)
        return Command(name)

    def _if_error(self, body: bytes) -> None:
        if body.startswith(b"\x05ERROR"):
            reason = body[7 : 7 + body[6]] if len(body) > 6 else b""
            text = "".join(c if c.isprintable() else "?" for c in reason.decode("utf-8", "replace"))
            raise self._over(Rejected(text))

    # Frames.

    def _frame(self, most: int, left: int) -> bytes | None:
        """Return the body of the next frame, and keep its flags; None if it is not complete.

        It may have `most` bytes, and only `left` with what came before.
        """
        data, at = self._data, self._at
        there = len(data) - at
        if there < 2:
            self._wait(2)
            return None
        flags = data[at]
        if flags & _LONG:
            if there < 9:
                self._wait(9)
                return None
            start = at + 9
            size = int.from_bytes(data[at + 1 : start])
        else:
            start = at + 2
            size = data[at + 1]
        if flags > (_MORE | _LONG | (_COMMAND if self.version > 2 else 0)):
            self._fail(f"a frame with the flags 0x{flags:02x}", b"unknown flags")
        if size > most or size > left:
            told = f"a frame of {size} bytes is over the limit, with what came before, of {most}"
            self._fail(told, told.encode())
        end = start + size
        if end > len(data):
            self._wait(end - at)
            return None
        self._at = end
        self._flags = flags
        return data[start:end]

    def _wait(self, need: int) -> None:
        """Keep what there is until `need` bytes of it are there."""
        if self._partial is None:
            rest = self._data[self._at :]
            self._data, self._at = b"", 0
            if rest:
                self._partial, self._need = bytearray(rest), need

    def _put_frame(self, body: bytes, flags: int, *, sealed: bool = True) -> None:
        if sealed and not self._plain:
            more, command = bool(flags & _MORE), bool(flags & _COMMAND)
            body = self._mechanism.seal(body, more=more, command=command)
            flags = 0  # as libzmq has it
        size = len(body)
        if size < 256:
            self._put(bytes((flags, size)) + body)
        else:
            self._put(bytes((flags | _LONG,)) + size.to_bytes(8))
            self._put(body)

    def _put(self, data: bytes) -> None:
        self._out.append(data)
        self.queued += len(data)

    # The end.

    def _fail(self, reason: str, tell: bytes = b"") -> Never:
        raise self._over(Violation(reason), tell)

    def _over(self, error: Violation, tell: bytes = b"") -> Violation:
        self.end(tell)
        return error
