"""The codec: what it writes it reads, and whatever else it is given it refuses in one way."""

import time

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.rpc.errors import Unsendable
from kontrol.rpc.events import MOST_SLOTS, Beat, Done, Event, Failure, Item, More, Open, Result
from kontrol.rpc.limits import Limits
from kontrol.rpc.wire import Codec, Id, Malformed, Message

CODEC = Codec(Limits())

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
not_text = st.binary(max_size=20).filter(lambda data: not _is_utf8(data))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | texts
    | not_text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=20,
)
ids = texts | st.binary(max_size=64) | st.integers(-(2**63), 2**64 - 1)
answers = st.one_of(
    st.builds(Result, values),
    st.builds(Failure, texts, texts, texts),
    st.builds(Item, values),
    st.builds(Done),
    st.builds(More, st.integers(1, MOST_SLOTS)),
    st.builds(Beat),
)
opens = st.builds(Open, texts, st.lists(values, max_size=4).map(tuple))


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def event(header: object, name: object, args: object, *, use_bin_type: bool = True) -> bytes:
    frame = msgpack.packb([header, name, args], use_bin_type=use_bin_type)
    assert isinstance(frame, bytes)
    return frame


HEADER = {"message_id": b"m", "v": 3}


@given(ids, ids, answers)
def test_answers_come_back_as_sent(message_id: Id, to: Id, answer: Event) -> None:
    message = Message(message_id, to, answer)
    read = CODEC.decode(CODEC.encode(message))
    assert read == message
    assert (type(read.id), type(read.to)) == (type(message_id), type(to))


@given(ids, opens)
def test_calls_come_back_as_sent(message_id: Id, call: Open) -> None:
    message = Message(message_id, None, call)
    assert CODEC.decode(CODEC.encode(message)) == message


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda data: b"\x93" + data))
def test_arbitrary_bytes_raise_nothing_but_malformed(data: bytes) -> None:
    try:
        CODEC.decode(data)
    except Malformed as error:
        assert str(error)


@given(values, values, values)
def test_arbitrary_values_raise_nothing_but_malformed(
    header: object, name: object, args: object
) -> None:
    try:
        CODEC.decode(event(header, name, args))
    except Malformed as error:
        assert str(error)


@given(ids, answers, st.data())
def test_damaged_events_raise_nothing_but_malformed(
    message_id: Id, answer: Event, data: st.DataObject
) -> None:
    frame = bytearray(CODEC.encode(Message(message_id, "c", answer)))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(frame)))
    try:
        CODEC.decode(bytes(frame[:cut]))
    except Malformed as error:
        assert str(error)


@given(values)
def test_the_walk_over_the_structure_agrees_with_msgpack(value: object) -> None:
    """Every prefix of an event is cut short, and the whole is not."""
    frame = event(HEADER, "name", [value])
    assert isinstance(CODEC.decode(frame).event, Open)
    for cut in range(len(frame)):
        with pytest.raises(Malformed):
            CODEC.decode(frame[:cut])
    with pytest.raises(Malformed, match="follow"):
        CODEC.decode(frame + b"\xc0")


MALFORMED: dict[str, tuple[bytes, str, object]] = {
    "nothing": (b"", "array", None),
    "no msgpack": (b"GET / HTTP/1.1\r\n\r\n", "array", None),
    "a map": (msgpack.packb({"message_id": b"m"}), "array", None),
    "two parts": (msgpack.packb([HEADER, "name"]), "array", b"m"),
    "four parts": (msgpack.packb([HEADER, "name", [], 1]), "array", b"m"),
    "header a string": (event("header", "name", []), "header must be a map, not a string", None),
    "header a map of ints": (event({1: 2}, "name", []), "map key", None),
    "no message id": (event({"v": 3}, "name", []), "message_id", None),
    "message id nil": (event({"v": 3, "message_id": None}, "name", []), "message_id", None),
    "message id a list": (event({"v": 3, "message_id": []}, "name", []), "message_id", None),
    "message id a boolean": (event({"v": 3, "message_id": True}, "name", []), "message_id", None),
    "message id huge": (event({"v": 3, "message_id": "m" * 257}, "n", []), "longer", None),
    "response to a map": (event(HEADER | {"response_to": {}}, "OK", [1]), "response_to", b"m"),
    "no version": (event({"message_id": b"m"}, "name", []), "v is None", b"m"),
    "version 2": (event({"message_id": b"m", "v": 2}, "name", []), "v is 2", b"m"),
    "version text": (event({"message_id": b"m", "v": "3"}, "name", []), "v is '3'", b"m"),
    "name nil": (event(HEADER, None, []), "name must be a string, not nil", b"m"),
    "name not UTF-8": (event(HEADER, b"\xff", []), "name must be a string, not bytes", b"m"),
    "name huge": (event(HEADER, "n" * 257, []), "longer", b"m"),
    "arguments a map": (event(HEADER, "name", {}), "arguments must be an array, not a map", b"m"),
    "arguments nil": (event(HEADER, "name", None), "arguments must be an array, not nil", b"m"),
    "cut short": (event(HEADER, "name", ["x" * 50])[:-20], "cut short", b"m"),
    "a map of ints": (event(HEADER, "name", [{1: 2}]), "map key", b"m"),
    "an extension": (event(HEADER, "name", [msgpack.ExtType(5, b"x")]), "0xc7|0xd4", b"m"),
    "deep": (event(HEADER, "name", [])[:-1] + b"\x91" * 9000 + b"\xc0", "deeper", b"m"),
    "wide": (event(HEADER, "name", [[0] * 10_001]), "more values", b"m"),
    "a promise": (event(HEADER, "name", [])[:-1] + b"\xdd\xff\xff\xff\xff", "more values", b"m"),
    "promises": (event(HEADER, "name", [])[:-1] + b"\xdc\x1f\xff" * 60, "cut short", b"m"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_events_say_what_is_wrong_and_whose_they_are(what: str) -> None:
    frame, reason, message_id = MALFORMED[what]
    with pytest.raises(Malformed, match=reason) as caught:
        CODEC.decode(frame)
    assert caught.value.id == message_id


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("OK", None),
        ("OK", []),
        ("OK", [1, 2]),
        ("ERR", None),
        ("ERR", []),
        ("_zpc_more", []),
        ("_zpc_more", ["1"]),
        ("_zpc_more", [0]),
        ("_zpc_more", [-1]),
        ("_zpc_more", [True]),
        ("_zpc_more", [2**40]),
        ("OTHER", []),
    ],
)
def test_malformed_answers_name_their_channel(name: str, args: object) -> None:
    with pytest.raises(Malformed) as caught:
        CODEC.decode(event(HEADER | {"response_to": "c"}, name, args))
    assert caught.value.to == "c"


def test_python_2_sends_bin_and_raw_and_gets_its_ids_back() -> None:
    as_bin = event({b"message_id": b"\xff\x00", b"v": 3}, b"name", [b"h\xc3\xa9", b"\xff"])
    message = CODEC.decode(as_bin)
    assert message == Message(b"\xff\x00", None, Open("name", ("hé", b"\xff")))
    as_raw = event(
        {"message_id": b"\xff\x00", "v": 3},
        b"name",
        [b"h\xc3\xa9", b"\xff", {b"k": [b"\xfe"]}],
        use_bin_type=False,
    )
    message = CODEC.decode(as_raw)
    assert message.event == Open("name", ("hé", b"\xff", {"k": [b"\xfe"]}))
    assert message.id is not None
    reply = CODEC.encode(Message("ours", message.id, Result("ok")))
    assert b"\xabresponse_to\xa2\xff\x00" in reply


def test_error_forms_of_older_protocols() -> None:
    header = HEADER | {"response_to": "c"}
    assert CODEC.decode(event(header, "ERR", ["oh"])).event == Failure("RemoteError", "oh", "")
    read = CODEC.decode(event(header, "ERR", ["Name", "oh", None])).event
    assert read == Failure("Name", "oh", "")
    assert CODEC.decode(event(header, "ERR", [1, None])).event == Failure("1", "", "")


def test_other_header_entries_are_left_alone() -> None:
    frame = event(HEADER | {"trace_id": [1, 2], "zmqid": None}, "name", [])
    assert CODEC.decode(frame).event == Open("name", ())


@pytest.mark.parametrize("value", [object(), 2**64, {1, 2}, "\ud800", 1j])
def test_what_cannot_be_sent_says_so(value: object) -> None:
    with pytest.raises(Unsendable, match="no msgpack form"):
        CODEC.encode(Message("m", "c", Result(value)))


def test_what_is_too_large_says_so() -> None:
    codec = Codec(Limits(frame=1000))
    with pytest.raises(Unsendable, match="over the limit of 1000"):
        codec.encode(Message("m", "c", Result("x" * 1000)))
    with pytest.raises(Malformed, match="over the limit of 1000"):
        codec.decode(bytes(1001))


def test_hostile_structure_is_refused_in_little_time() -> None:
    start = event(HEADER, "name", [])[:-1]
    hostile = [
        start + b"\xdd\x00\x1f\xff\xff" + b"\x90" * (2**21 - 60),  # two million empty arrays
        start + b"\xdd\x00\x1f\xff\xff" * 400_000,  # arrays of two million, nested
        start + b"\x91" * (2**21 - 60),
        start + b"\xde\xff\xff" * 100_000,
    ]
    for frame in hostile:
        begun = time.perf_counter()
        with pytest.raises(Malformed):
            CODEC.decode(frame)
        assert time.perf_counter() - begun < 0.1
