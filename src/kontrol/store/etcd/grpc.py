"""gRPC over HTTP/2, as far as a client of etcd needs it. Pure.

A call is a stream: headers, then messages with a prefix of five bytes each, then trailers that have
the status. After `PROTOCOL-HTTP2.md` and `http-grpc-status-mapping.md` of gRPC's documentation.
Nothing is compressed: no peer may compress what it answers to a client that does not say that it
understands it.

Whatever a peer sends becomes messages or an `Outcome` that is an error; nothing raises.
"""

import struct
from enum import IntEnum
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from kontrol.store.etcd.hpack import Headers, encode

_PREFIX: Final = struct.Struct(">BI")  # whether the message is compressed, its bytes
_MAX_DETAILS = 2048  # bytes of a message that are kept: it ends in logs


class Status(IntEnum):
    """The codes of gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Outcome(NamedTuple):
    """How a call ended, and what the server or we say about it."""

    status: Status
    details: str = ""


_BY_HTTP: Final = {
    b"400": Status.INTERNAL,
    b"401": Status.UNAUTHENTICATED,
    b"403": Status.PERMISSION_DENIED,
    b"404": Status.UNIMPLEMENTED,
    b"429": Status.UNAVAILABLE,
    b"502": Status.UNAVAILABLE,
    b"503": Status.UNAVAILABLE,
    b"504": Status.UNAVAILABLE,
}


def request_headers(path: str, authority: str, *, tls: bool, token: str = "") -> bytes:
    """Return the encoded headers of a call, without a timeout."""
    headers = [
        (":method", "POST"),
        (":scheme", "https" if tls else "http"),
        (":path", path),
        (":authority", authority),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        # So a member without a leader refuses the call, instead of waiting without an answer.
        ("hasleader", "true"),
    ]
    return encode(*headers, *([("token", token)] if token else []))


def timeout_header(seconds: float) -> bytes:
    """Return the header that tells the server when we no longer wait, to append to the others."""
    return encode(("grpc-timeout", f"{min(max(round(seconds * 1000), 1), 99_999_999)}m"))


def framed(message: bytes) -> bytes:
    """Return a message with its prefix."""
    return _PREFIX.pack(0, len(message)) + message


def opening(headers: Headers) -> Outcome | None:
    """Return what is wrong with the headers of an answer, None if messages follow."""
    found = dict(headers)
    if (status := found.get(b":status", b"")) != b"200":
        return Outcome(_BY_HTTP.get(status, Status.UNKNOWN), f"HTTP status {_shown(status)}")
    kind = found.get(b"content-type", b"")
    if not kind.startswith(b"application/grpc"):
        return Outcome(Status.UNKNOWN, f"the answer is {_shown(kind)}, not application/grpc")
    return None


def outcome(trailers: Headers) -> Outcome:
    """Return how a call ended."""
    found = dict(trailers)
    text = found.get(b"grpc-status")
    if text is None:
        return opening(trailers) or Outcome(Status.UNKNOWN, "the answer ends without a status")
    details = unquote_to_bytes(found.get(b"grpc-message", b"")[: 3 * _MAX_DETAILS])
    try:
        status = Status(int(text[:9]))
    except ValueError:
        status = Status.UNKNOWN
    return Outcome(status, details[:_MAX_DETAILS].decode("utf-8", "replace"))


class Splitter:
    """The messages of one stream's bytes, each of at most `most` bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rest = bytearray()  # the beginning of a message

    def feed(self, data: bytes) -> list[bytes] | Outcome:
        """Take bytes; returns the messages that they complete, or why the stream must end."""
        rest = self._rest
        if rest:
            rest += data
            if len(rest) < 5 or len(rest) - 5 < int.from_bytes(rest[1:5], "big") <= self._most:
                return [] if not rest[0] else _COMPRESSED
            data = bytes(rest)
            rest.clear()
        messages = []
        at, size = 0, len(data)
        while size - at >= 5:
            compressed, length = _PREFIX.unpack_from(data, at)
            if compressed:
                return _COMPRESSED
            if length > self._most:
                return Outcome(
                    Status.RESOURCE_EXHAUSTED,
                    f"a message of {length} bytes, and at most {self._most} are read",
                )
            end = at + 5 + length
            if end > size:
                break
            messages.append(data[at + 5 : end])
            at = end
        rest += data[at:]
        return messages


_COMPRESSED: Final = Outcome(Status.INTERNAL, "a message is compressed, which was not asked for")


def _shown(text: bytes) -> str:
    return ascii(text[:64].decode("utf-8", "replace"))
