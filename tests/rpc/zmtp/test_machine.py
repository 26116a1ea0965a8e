"""The ZMTP machine: what one end sends the other gets, and whatever else comes ends it cleanly."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.rpc.support import GREETING, READY, framed
from tests.rpc.zmtp.ping import ping

from kontrol.rpc.limits import Limits
from kontrol.rpc.zmtp.machine import (
    CLIENT,
    SERVER,
    Command,
    Event,
    Machine,
    Mismatch,
    Ready,
    Rejected,
    Role,
    Violation,
)
from kontrol.rpc.zmtp.mechanism import (
    HandshakeError,
    Mechanism,
    Null,
    encode_metadata,
    parse_metadata,
)

SMALL = Limits(readable=1000, most_parts=4, command=100, handshake_bytes=150, handshake=10.0)
DEALER = GREETING + READY + b"DEALER"
GREETING_2 = (
    b"\xff" + bytes(7) + b"\x01\x7f\x01"
)  # ZMTP 2.0, as libzmq 3.2 sends it; a type follows

messages = st.lists(st.binary(max_size=700), min_size=1, max_size=8)


def null(role: Role) -> Null:
    return Null({b"Socket-Type": role.socket_type, b"Identity": b""})


def machine(
    role: Role = SERVER, limits: Limits = SMALL, mechanism: Mechanism | None = None
) -> Machine:
    return Machine(role, mechanism or null(role), limits, 0.0)


def fed(one: Machine, data: bytes, cuts: Iterable[int] = (), now: float = 0.0) -> list[Event]:
    """Return the events that `data` makes, given in pieces."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    events: list[Event] = []
    for start, end in pairwise(edges):
        one.receive(data[start:end], now)
        while (event := one.next()) is not None:
            events.append(event)
        assert not one.pending
    return events


def met(limits: Limits = SMALL) -> Machine:
    """Return a server after its handshake."""
    one = machine(limits=limits)
    (ready,) = fed(one, DEALER)
    assert isinstance(ready, Ready)
    assert one.take() == GREETING[:11] + b"\x01" + GREETING[12:] + ready_of(b"ROUTER")
    return one


def ready_of(kind: bytes) -> bytes:
    body = b"\x05READY" + encode_metadata({b"Socket-Type": kind, b"Identity": b""})
    return b"\x04" + bytes((len(body),)) + body


def command(name: bytes, data: bytes = b"") -> bytes:
    body = bytes((len(name),)) + name + data
    return b"\x04" + bytes((len(body),)) + body


def shake(one: Machine, other: Machine) -> list[Event]:
    """Let both ends talk until neither has anything to say."""
    events: list[Event] = []
    while one.queued or other.queued:
        events += fed(other, one.take())
        events += fed(one, other.take())
    return events


class Mask:
    """A mechanism that hides frames, with one command from either end: a stand-in for CURVE."""

    name: ClassVar[bytes] = b"MASK"

    def __init__(self, *, server: bool) -> None:
        self.ready = False
        self.metadata: Mapping[bytes, bytes] = {}
        self._server = server
        self._sent = self._got = 0

    def start(self) -> bytes | None:
        return None if self._server else b"\x05HELLO" + encode_metadata({b"Socket-Type": b"DEALER"})

    def receive(self, command: bytes) -> bytes | None:
        name = b"\x05HELLO" if self._server else b"\x07WELCOME"
        if not command.startswith(name):
            raise HandshakeError("not that")
        self.metadata = parse_metadata(command[len(name) :])
        self.ready = True
        return (
            b"\x07WELCOME" + encode_metadata({b"Socket-Type": b"ROUTER"}) if self._server else None
        )

    def seal(self, frame: bytes, *, more: bool, command: bool) -> bytes:
        self._sent += 1
        return bytes((self._sent % 256, more | command << 1)) + frame[::-1]

    def unseal(self, body: bytes) -> tuple[bytes, bool, bool]:
        self._got += 1
        if len(body) < 2 or body[0] != self._got % 256:
            raise HandshakeError("out of order")
        return body[:1:-1], bool(body[1] & 1), bool(body[1] & 2)


@pytest.mark.parametrize("masked", [False, True])
@given(
    st.lists(messages, max_size=5),
    st.lists(messages, max_size=5),
    st.lists(st.integers(0), max_size=30),
)
def test_what_one_end_sends_the_other_gets_whatever_the_pieces(
    masked: bool, up: list[list[bytes]], down: list[list[bytes]], cuts: Sequence[int]
) -> None:
    limits = Limits()
    client = machine(CLIENT, limits, Mask(server=False) if masked else None)
    server = machine(SERVER, limits, Mask(server=True) if masked else None)
    assert [type(event) for event in shake(client, server)] == [Ready, Ready]
    for one, other, sent in ((client, server, up), (server, client, down)):
        for parts in sent:
            one.send(parts)
        assert fed(other, one.take(), cuts) == sent
        assert not other.held


@given(st.binary(max_size=3000), st.lists(st.integers(0), max_size=10), st.booleans())
def test_whatever_comes_is_read_or_refused_and_never_kept_beyond_the_limit(
    data: bytes, cuts: Sequence[int], late: bool
) -> None:
    one = met() if late else machine()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    try:
        for start, end in pairwise(edges):
            one.receive(data[start:end], 0.0)
            while one.next() is not None:
                pass
            assert one.held <= SMALL.readable + 9
    except Violation as violation:
        assert str(violation)
        one.take()
        one.receive(DEALER, 0.0)
        assert one.next() is None
        assert (one.held, one.queued, one.pending, one.due) == (0, 0, False, None)


@given(messages, st.data())
def test_a_mutated_conversation_is_read_or_refused(parts: list[bytes], data: st.DataObject) -> None:
    client = machine(CLIENT, Limits())
    conversation = bytearray(client.take())
    fed(client, GREETING + ready_of(b"ROUTER"))
    client.send(parts)
    ping(client, 1.0)
    conversation += client.take()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(conversation) - 1))
        conversation[at] = data.draw(st.integers(0, 255))
    one = machine(SERVER, Limits())
    try:
        fed(one, bytes(conversation), data.draw(st.lists(st.integers(0), max_size=5)))
    except Violation as violation:
        assert str(violation)


JUNK = {
    "HTTP": b"GET / HTTP/1.1\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01",
    "an unversioned ZMTP 1.0": b"\x01\x00\x02",
    "a signature cut off": b"\xff" + bytes(9),
    "ZMTP 1.0 with a signature": GREETING[:10] + b"\0",
    "a message before the handshake": GREETING + framed(b"", b"x"),
    "a command that is none": GREETING + command(b"HELLO"),
    "no socket type": GREETING + command(b"READY"),
    "a SUB": GREETING + command(b"READY", encode_metadata({b"Socket-Type": b"SUB"})),
    "metadata cut off": GREETING + READY + b"DEAL",
    "metadata that is too long": GREETING + command(b"READY", b"\x01x\xff\xff\xff\xff"),
    "a name of no bytes": GREETING + command(b"READY", b"\x00\x00\x00\x00\x00"),
    "a handshake of many bytes": GREETING
    + command(b"READY", b"\x01x\x00\x00\x00\x64" + bytes(100)),
    "a ZMTP 2.0 SUB": GREETING_2 + b"\x02",
    "a ZMTP 2.0 identity of many parts": GREETING_2 + b"\x05" + b"\x01\x00",
}


@pytest.mark.parametrize("what", JUNK)
def test_junk_before_the_handshake_is_refused(what: str) -> None:
    data = JUNK[what]
    if what == "metadata cut off":
        data = GREETING + b"\x04\x1a" + READY[2:] + b"DEAL"
    one = machine()
    with pytest.raises(Violation):
        fed(one, data)


def test_a_handshake_without_end_is_refused() -> None:
    class Endless(Mask):
        def receive(self, command: bytes) -> bytes | None:
            return None

    one = machine(mechanism=Endless(server=True))
    hello = GREETING[:12] + b"MASK" + GREETING[16:] + command(b"HELLO", bytes(60))
    fed(one, hello)
    fed(one, command(b"HELLO", bytes(60)))
    with pytest.raises(Violation, match="over the limit"):
        fed(one, command(b"HELLO", bytes(60)))


def test_a_peer_without_our_mechanism_gets_no_more_than_a_greeting() -> None:
    for version in (GREETING, GREETING_2 + b"\x05"):
        one = machine(mechanism=Mask(server=True))
        with pytest.raises(Mismatch):
            fed(one, version + READY + b"DEALER")
        assert len(one.take()) <= 64


LATER = {
    "a frame over the limit": b"\x02" + (1001).to_bytes(8),
    "a frame of a terabyte": b"\x02" + (1 << 40).to_bytes(8),
    "parts over the limit": b"\x01\x00" * 4,
    "bytes over the limit, in parts": b"\x01\xff" + bytes(255) + b"\x02" + (746).to_bytes(8),
    "unknown flags": b"\x08\x00",
    "a command in parts": b"\x05\x05\x04PING",
    "a command without a name": b"\x04\x00",
    "a command cut off": b"\x04\x03\x04PI",
    "a command over the limit": b"\x06" + (101).to_bytes(8) + b"\x04TEST" + bytes(96),
    "a PING without a TTL": command(b"PING", b"\0"),
    "a PING with a long context": command(b"PING", bytes(19)),
}


@pytest.mark.parametrize("what", LATER)
def test_what_is_over_a_bound_is_told_so(what: str) -> None:
    one = met()
    with pytest.raises(Violation):
        fed(one, framed(b"") * 3 + LATER[what])
    told = one.take()
    assert told[0] == 4
    assert told[2:8] == b"\x05ERROR"
    assert told[9:].isascii()
    other = machine(CLIENT)
    with pytest.raises(Rejected, match=told[9:].decode()):
        fed(other, GREETING + ready_of(b"ROUTER") + told)


def test_parts_of_a_message_are_counted_and_not_those_of_all_messages() -> None:
    one = met()
    message = [b""] * SMALL.most_parts
    assert fed(one, framed(*message) * 1000) == [message] * 1000


def test_a_byte_at_a_time_is_kept_compactly() -> None:
    one = met()
    data = b"\x02" + (900).to_bytes(8) + bytes(899)
    for i in range(len(data)):
        one.receive(data[i : i + 1], 0.0)
        assert one.next() is None
        assert one.held == i + 1
    one.receive(b"x", 0.0)
    assert one.next() == [bytes(899) + b"x"]


def test_an_identity_is_ignored() -> None:
    one = machine()
    claimed = b"\0\x6b\x8b\x45\x67"  # of the range that a ROUTER of libzmq gives out itself
    metadata = encode_metadata({b"Socket-Type": b"DEALER", b"Identity": claimed})
    (ready,) = fed(one, GREETING + command(b"READY", metadata))
    assert isinstance(ready, Ready)
    assert fed(one, framed(b"", b"x")) == [[b"", b"x"]]


def test_a_peer_of_zmtp_2() -> None:
    """Byte by byte what libzmq 3.2.2 sends, and what it accepts."""
    one = machine()
    assert one.take() == GREETING[:11]
    assert fed(one, GREETING_2) == []
    assert fed(one, b"\x05" + b"\x00\x05\x00name", (4,)) == [Ready({})]
    assert one.take() == b"\x06\x00\x00"
    assert fed(one, framed(b"", b"x") * 2) == [[b"", b"x"]] * 2
    one.send([b"", b"y"])
    assert one.take() == framed(b"", b"y")
    with pytest.raises(Violation):
        fed(one, b"\x04\x05\x04PING")
    assert not one.queued
    with pytest.raises(Violation, match="too old"):
        fed(machine(CLIENT), GREETING_2 + b"\x06")


def test_the_minor_version_does_not_matter() -> None:
    for minor in (0, 1, 7):
        one = machine()
        (ready,) = fed(one, DEALER[:11] + bytes((minor,)) + DEALER[12:])
        assert isinstance(ready, Ready)
        assert one.version == 3


def test_a_handshake_has_ten_seconds() -> None:
    one = machine()
    for now in (1.0, 5.0, 9.0):
        fed(one, GREETING[int(now) : int(now) + 1] if now > 1 else GREETING[:1], now=now)
        assert one.due == 10.0
    one.expire(9.9)
    with pytest.raises(Violation, match="no complete handshake in 10 s"):
        one.expire(10.0)
    one = machine()
    fed(one, GREETING, now=1.0)
    one.take()
    with pytest.raises(Violation):
        one.expire(10.0)
    assert one.take() == command(b"ERROR", b"\x08too slow")
    one = met()
    assert one.due is None
    one.expire(1e9)


def test_heartbeats() -> None:
    one = met()
    assert fed(one, command(b"PING", b"\x00\x32context"), now=1.0) == [Command(b"PING")]
    assert one.take() == command(b"PONG", b"context")
    assert one.due == 6.0
    fed(one, framed(b"x"), now=3.0)
    assert one.due == 8.0
    one.expire(7.9)
    with pytest.raises(Violation, match="nothing for the 5 s"):
        one.expire(8.0)
    one = met()
    ping(one, 2.5)
    assert one.take() == command(b"PING", b"\x00\x19")
    assert fed(one, command(b"PONG")) == [Command(b"PONG")]
    assert fed(one, command(b"SUBSCRIBE", b"x")) == [Command(b"SUBSCRIBE")]
    assert one.due is None


def test_an_error_of_the_peer_ends_the_handshake_with_its_reason() -> None:
    one = machine(CLIENT)
    with pytest.raises(Rejected, match=r"no\?way"):
        fed(one, GREETING + command(b"ERROR", b"\x06no\nway"))
    one = machine(CLIENT)
    with pytest.raises(Rejected, match=r"^$"):
        fed(one, GREETING + command(b"ERROR"))


def test_a_message_before_the_handshake_is_not_sent() -> None:
    one = machine(CLIENT)
    with pytest.raises(RuntimeError):
        one.send([b"x"])


@given(
    st.dictionaries(st.binary(min_size=1, max_size=255).map(bytes.lower), st.binary(max_size=300))
)
def test_metadata_comes_back(metadata: dict[bytes, bytes]) -> None:
    assert parse_metadata(encode_metadata(metadata)) == metadata


@given(st.binary(max_size=60))
def test_any_metadata_is_read_or_refused(data: bytes) -> None:
    try:
        parse_metadata(data)
    except HandshakeError as error:
        assert error.tell
