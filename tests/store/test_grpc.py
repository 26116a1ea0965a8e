"""gRPC without I/O: messages out of bytes, and what headers and trailers say."""

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.store.etcd.grpc import (
    Outcome,
    Splitter,
    Status,
    framed,
    opening,
    outcome,
    request_headers,
    timeout_header,
)

MESSAGES = st.lists(st.binary(max_size=50), max_size=20)


def split(splitter: Splitter, data: bytes, step: int) -> list[bytes] | Outcome:
    messages: list[bytes] = []
    for at in range(0, len(data), step):
        found = splitter.feed(data[at : at + step])
        if isinstance(found, Outcome):
            return found
        messages += found
    return messages


@given(MESSAGES, st.integers(1, 40))
def test_messages_come_whole_whatever_frames_they_are_in(messages: list[bytes], step: int) -> None:
    data = b"".join(map(framed, messages))
    assert split(Splitter(50), data, step) == messages


@given(st.integers(0, 50), st.integers(1, 9))
def test_a_message_that_is_too_long_is_refused_by_its_prefix(before: int, step: int) -> None:
    data = framed(b"x") * before + b"\0\0\0\0\x33"
    end = split(Splitter(50), data, step)
    assert isinstance(end, Outcome)
    assert end.status is Status.RESOURCE_EXHAUSTED
    assert "51 bytes" in end.details


@given(MESSAGES, st.integers(1, 9), st.integers(1, 255))
def test_a_message_that_is_compressed_is_refused(
    messages: list[bytes], step: int, flag: int
) -> None:
    data = b"".join(map(framed, messages)) + bytes((flag,)) + framed(b"x")[1:]
    end = split(Splitter(50), data, step)
    assert isinstance(end, Outcome)
    assert "compressed" in end.details


@given(st.binary(max_size=200), st.integers(1, 60))
def test_any_bytes_are_messages_or_an_end(data: bytes, step: int) -> None:
    found = split(Splitter(100), data, step)
    if isinstance(found, Outcome):
        assert found.status is not Status.OK
    else:
        whole = b"".join(map(framed, found))
        assert data.startswith(whole)
        assert len(data) - len(whole) < 105


@pytest.mark.parametrize(
    ("trailers", "end"),
    [
        ([(b"grpc-status", b"0")], Outcome(Status.OK)),
        (
            [(b"grpc-status", b"14"), (b"grpc-message", b"etcdserver: no leader")],
            Outcome(Status.UNAVAILABLE, "etcdserver: no leader"),
        ),
        (
            [(b"grpc-status", b"2"), (b"grpc-message", b"50%25 of %E2%82%AC %zz %")],
            Outcome(Status.UNKNOWN, "50% of \u20ac %zz %"),
        ),
        (
            [(b"grpc-status", b"2"), (b"grpc-message", b"%ff\xfe")],
            Outcome(Status.UNKNOWN, "\ufffd\ufffd"),
        ),
        ([(b"grpc-status", b"17")], Outcome(Status.UNKNOWN)),
        ([(b"grpc-status", b"-1")], Outcome(Status.UNKNOWN)),
        ([(b"grpc-status", b"")], Outcome(Status.UNKNOWN)),
        ([(b"grpc-status", b"9" * 5000)], Outcome(Status.UNKNOWN)),
        ([(b":status", b"503")], Outcome(Status.UNAVAILABLE, "HTTP status '503'")),
        ([(b":status", b"404")], Outcome(Status.UNIMPLEMENTED, "HTTP status '404'")),
        ([(b":status", b"\x1b[31m")], Outcome(Status.UNKNOWN, "HTTP status '\\x1b[31m'")),
        ([], Outcome(Status.UNKNOWN, "HTTP status ''")),
        (
            [(b":status", b"200"), (b"content-type", b"text/html")],
            Outcome(Status.UNKNOWN, "the answer is 'text/html', not application/grpc"),
        ),
        (
            [(b":status", b"200"), (b"content-type", b"application/grpc+proto")],
            Outcome(Status.UNKNOWN, "the answer ends without a status"),
        ),
    ],
)
def test_what_trailers_say(trailers: list[tuple[bytes, bytes]], end: Outcome) -> None:
    assert outcome(trailers) == end


HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"grpc-status", b"grpc-message", b":status", b"content-type", b"x"]),
        st.binary(max_size=60),
    ),
    max_size=6,
)


@given(HEADERS)
def test_any_headers_are_an_end(headers: list[tuple[bytes, bytes]]) -> None:
    end = outcome(headers)
    assert end.status is not Status.OK or int(dict(headers)[b"grpc-status"]) == 0
    start = opening(headers)
    assert start is None or start.status is not Status.OK


def test_a_message_from_the_server_is_bounded() -> None:
    for text in (b"x" * 1_000_000, b"%41" * 100_000):
        assert len(outcome([(b"grpc-status", b"2"), (b"grpc-message", text)]).details) == 2048


def headers_of(block: bytes) -> dict[str, str]:
    return {str(name): str(value) for name, value in hpack.Decoder().decode(block)}


def test_a_call_has_the_headers_that_grpc_requires() -> None:
    block = request_headers("/a.B/C", "h:1", tls=True, token="t")
    decoded = headers_of(block + timeout_header(1.5))
    assert decoded == {
        ":method": "POST",
        ":scheme": "https",
        ":path": "/a.B/C",
        ":authority": "h:1",
        "te": "trailers",
        "content-type": "application/grpc",
        "hasleader": "true",
        "token": "t",
        "grpc-timeout": "1500m",
    }
    assert "token" not in headers_of(request_headers("/", "h", tls=False))


@given(st.floats(-1, 1e12))
def test_a_timeout_has_at_most_eight_digits_and_is_not_zero(seconds: float) -> None:
    [(name, value)] = headers_of(timeout_header(seconds)).items()
    assert name == "grpc-timeout"
    assert 1 <= int(value[:-1]) <= 99_999_999
