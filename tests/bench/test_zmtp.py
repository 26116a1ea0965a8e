"""The generator's bytes: what it sends is ZeroRPC, and what arrives is split as it was sent."""

import pytest
from bench.agents import record
from bench.zmtp import COUNTER, GREETING, READY, Broken, Call, Incoming, outcome
from hypothesis import given
from hypothesis import strategies as st

from kontrol.ensemble.pod import parse_keepalive
from kontrol.rpc.events import Beat, Event, Item, Open, Result, failure
from kontrol.rpc.limits import Limits
from kontrol.rpc.wire import Codec, Message

CODEC = Codec(Limits())


def framed(body: bytes) -> bytes:
    """Return a message of an empty part and `body`, as ZMTP has it."""
    if len(body) < 256:
        return bytes((1, 0, 0, len(body))) + body
    return bytes((1, 0, 2)) + len(body).to_bytes(8, "big") + body


def answer(event: Event) -> bytes:
    return CODEC.encode(Message("an-id", "a-call", event))


def sent(call: Call, number: int) -> Message:
    data = bytes(call.number(number))
    body = data[4:] if data[2] == 0 else data[11:]
    assert framed(body) == data
    return CODEC.decode(body)


@pytest.mark.parametrize("size", [1, 100, 300, 70_000])
def test_a_call_is_what_the_codec_reads_under_each_number(size: int) -> None:
    call = Call("ping", "x" * size)
    for number in (0, 1, 2**64 - 1):
        assert sent(call, number) == Message(f"{number:016x}", None, Open("ping", ("x" * size,)))


def test_a_changed_record_has_the_same_length_and_a_greater_counter_and_another_payload() -> None:
    call = Call("ping", record(7))
    for change in (0, 1, 12345):
        call.change(change)
        event = sent(call, 1).event
        assert isinstance(event, Open)
        pod = parse_keepalive(str(event.args[0]))
        assert (pod.n, pod.payload) == (int(COUNTER) + change, str(int(COUNTER) + change))
        assert (pod.id, pod.ip) == ("bench-000007", "10.0.0.7")


@given(st.data())
def test_a_stream_is_split_into_the_same_messages_wherever_it_is_cut(data: st.DataObject) -> None:
    bodies = data.draw(st.lists(st.binary(min_size=1, max_size=600), max_size=5))
    ping = b"\x04\x08\x04PING\x00\x0ax"
    stream = GREETING + READY + ping + b"".join(map(framed, bodies))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    incoming, found = Incoming(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += incoming.feed(stream[start:end])
    assert found == bodies
    assert incoming.ready
    assert incoming.owed == b"\x04\x06\x04PONGx"


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request".ljust(64),
        GREETING.replace(b"NULL\0", b"CURVE"),
        GREETING + b"\x04\x0a\x05ERROR\x03bad",
    ],
)
def test_a_peer_that_is_no_server_without_keys_is_told_apart(data: bytes) -> None:
    with pytest.raises(Broken):
        Incoming().feed(data)


def test_outcomes() -> None:
    accepted = {"seq": 3, "ttl": 25.0, "leader": "m1"}
    assert outcome(answer(Result(accepted))) == ""
    assert outcome(answer(Result(None))) == ""
    assert outcome(answer(failure("Conflict", "key 1 \xa2OK"))) == "Conflict"
    assert outcome(answer(failure("Unavailable", "OK" * 300))) == "Unavailable"
    assert outcome(answer(Beat())) is None
    assert outcome(answer(Item("OK"))) is None
