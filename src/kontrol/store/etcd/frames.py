"""HTTP/2's frames (RFC 9113, section 6), and the events that `http2` makes of them. Pure."""

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from kontrol.store.etcd.hpack import Headers

MAX_FRAME = 16_384  # bytes of a frame's payload; every peer accepts that many
HEAD_SIZE = 9

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE = range(6)
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(6, 10)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITIZED = 0x4, 0x8, 0x20
ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_HEADER_LIST = 2, 3, 4, 6

HEAD: Final = struct.Struct(">HBBBI")  # length in two parts, type, flags, stream
NUMBER: Final = struct.Struct(">I")
TWO_NUMBERS: Final = struct.Struct(">II")
SETTING: Final = struct.Struct(">HI")


class Code(IntEnum):
    """Why a stream or a connection ends; of a peer, any number may come."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    FLOW_CONTROL_ERROR = 3
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9


class Http2Error(Exception):
    """The peer broke the rules of HTTP/2, or a bound. The connection must end."""

    def __init__(self, text: str, code: Code = Code.PROTOCOL_ERROR) -> None:
        super().__init__(text)
        self.code = code


class Ready(NamedTuple):
    """The peer's first settings: it speaks HTTP/2."""


class HeadersReceived(NamedTuple):
    """A block of headers; `ended` if nothing follows on this stream."""

    stream: int
    headers: Headers
    ended: bool


class DataReceived(NamedTuple):
    """Bytes; `credit` is called once they are read. `ended` if nothing follows."""

    stream: int
    data: bytes
    ended: bool


class StreamReset(NamedTuple):
    """The peer gave up a stream."""

    stream: int
    code: int


class GoneAway(NamedTuple):
    """The peer accepts no more streams, and has done nothing for those above `last`."""

    last: int
    code: int
    text: str


class Pong(NamedTuple):
    """The answer to our ping."""


Event = Ready | HeadersReceived | DataReceived | StreamReset | GoneAway | Pong


def head(length: int, kind: int, flags: int = 0, stream: int = 0) -> bytes:
    """Return a frame's first bytes; `length` is that of its payload."""
    return HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream)


def unpadded(flags: int, payload: bytes) -> bytes:
    """Return a payload without its padding. Raises `Http2Error`."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Http2Error("a frame is all padding")
    return payload[1 : len(payload) - payload[0]]


def sized(payload: bytes, size: int) -> None:
    """Check the size of a payload. Raises `Http2Error`."""
    if len(payload) != size:
        raise Http2Error(f"a frame of {len(payload)} bytes, not {size}", Code.FRAME_SIZE_ERROR)
