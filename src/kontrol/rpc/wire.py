"""One event of ZeroRPC protocol version 3 to one frame of bytes, and back.

Theory of operation. A frame is the msgpack array `[header, name, args]`. The header is a map with
`v` (3), `message_id` (opaque: a string, bytes or an integer) and, on every event but a channel's
first, `response_to`: the first event's message id, which names the channel. Other header entries
(the reference library's middleware adds some) are left alone.

Python 2 peers send text as msgpack bin, and the oldest send everything as raw; so bin that is valid
UTF-8 is read as `str`, raw that is not is read as `bytes`, and a message id is kept as it came,
to the byte and the type, because its owner looks it up by both.

Frames come from unknown clients. Before msgpack builds anything, `_skip` walks the structure and
counts: a header may promise a million values in five bytes, and msgpack would make room for them at
every level of nesting. So decoding costs no more than the limits allow, whatever the bytes.
Arbitrary bytes raise `Malformed` and nothing else, with the message id if that much could be read.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import msgpack

from kontrol.rpc.errors import Unsendable
from kontrol.rpc.events import Event, Open, Unfit, from_wire
from kontrol.rpc.limits import Limits

VERSION = 3

_CALL = b"\x93\x82\xaamessage_id"  # an event whose header has two entries, and this one first
_V3 = b"\xa1v\x03"
_ONE = 0x91  # an array of one value
_SHORT = {0xD9: 1}  # bytes in which the size of a str is written, by its head
_TEXTS = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1, 0xC5: 2, 0xC6: 4}  # of a str or a bin
_NOWHERE = (1 << 62, 1 << 62)

_HEADER = 4096  # bytes in which the header of what is too large for an event should end

Id = str | bytes | int


@dataclass(frozen=True, slots=True)
class Message:
    """An event with its own message id and, unless it opens one, the id of its channel."""

    id: Id | None
    to: Id | None
    event: Event


class Malformed(ValueError):
    """A frame that is no event; `id` and `to` are what could be read of its header."""

    def __init__(self, reason: str, id: Id | None = None, to: Id | None = None) -> None:  # noqa: A002 - the wire's word
        super().__init__(reason)
        self.id = id
        self.to = to


class Codec:
    """Encodes and decodes within `limits`. Not for several threads at a time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._values = msgpack.Packer(use_bin_type=True)
        self._header = msgpack.Packer(use_bin_type=True, unicode_errors="surrogateescape")

    def encode(self, message: Message) -> bytes:
        """Return the frame. Raises `Unsendable` if it has no msgpack form or is too big."""
        header: dict[str, object] = {"message_id": message.id, "v": VERSION}
        if message.to is not None:
            header["response_to"] = message.to
        event = message.event
        try:
            frame: bytes = b"".join(
                (
                    b"\x93",
                    self._header.pack(header),
                    self._values.pack(event.name),
                    self._values.pack(event.args),
                )
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise Unsendable(f"{event.name}: its value has no msgpack form: {error}") from error
        if len(frame) > self._limits.frame:
            raise Unsendable(
                f"{event.name}: {len(frame)} bytes are over the limit of {self._limits.frame}"
                " for one event: send less, or a stream"
            )
        return frame

    def decode(self, frame: bytes) -> Message:
        """Return the message. Raises `Malformed`, and nothing else, whatever the bytes."""
        limits = self._limits
        if len(frame) > limits.frame:
            raise Malformed(
                f"{len(frame)} bytes are over the limit of {limits.frame} for one event: send less",
                *_ids(self._salvage(frame[:_HEADER])),
            )
        if frame[:1] != b"\x93":
            raise Malformed(
                f"expected the msgpack array [header, name, args], got {frame[:16]!r}...",
                *_ids(self._salvage(frame)),
            )
        values, bins = limits.values, False
        header: object = None
        try:
            end, values, _ = _skip(frame, 1, values, limits.depth)
            header = _unpack(frame[1:end])
            start, values, _ = _skip(frame, end, values, limits.depth)
            name = _decoded(frame[end:start], bins=True)
            end, values, bins = _skip(frame, start, values, limits.depth)
            if end != len(frame):
                raise Malformed(f"{len(frame) - end} bytes follow the event")
            args = _decoded(frame[start:], bins=bins)
        except Malformed as error:
            error.id, error.to = _ids(header)
            raise
        return self._judge(header, name, args)

    def _judge(self, header: object, name: object, args: object) -> Message:
        """Return the message that these three parts make. Raises `Malformed`."""
        if not isinstance(header, dict):
            raise Malformed(f"the header must be a map, not {_kind(header)}")
        message_id, to = _ids(header)
        reason: str | None = None
        version = _entry(header, "v")
        if version != VERSION:
            reason = f"header: v is {version!r:.40}: this endpoint speaks ZeroRPC protocol 3"
        elif not isinstance(name, str):
            reason = f"the event's name must be a string, not {_kind(name)}"
        elif to is None and _entry(header, "response_to") is not None:
            reason = "header: response_to must be a string, bytes or an integer"
        elif to is not None:
            try:
                return Message(message_id, to, from_wire(name, args))
            except Unfit as error:
                reason = str(error)
        elif message_id is None:
            reason = "header: message_id must be a string, bytes or an integer"
        elif self._long(message_id) or len(name) > self._limits.text:
            reason = f"message_id or name is longer than {self._limits.text} bytes"
            message_id = None if self._long(message_id) else message_id
        elif not isinstance(args, list):
            reason = f"the arguments must be an array, not {_kind(args)}"
        else:
            return Message(message_id, None, Open(name, tuple(args)))
        raise Malformed(reason, message_id, to)

    def _long(self, value: Id) -> bool:
        return not isinstance(value, int) and len(value) > self._limits.text

    def _salvage(self, frame: bytes) -> object:
        """Return the header of what is at least an array that starts with one, else None."""
        try:
            if not 0x91 <= frame[0] <= 0x9F:
                return None
            end, _, _ = _skip(frame, 1, self._limits.values, self._limits.depth)
            return _unpack(frame[1:end])
        except (Malformed, IndexError):
            return None


def peek(frame: bytes) -> tuple[Id, str, bytes] | None:
    """Return message id, method and argument of a call with one text, without decoding the rest.

    None if the event is none, or is spelled in another way than most clients do: then `decode` says
    what it is. The text is that in the frame; `decode` returns it as `str` if it is UTF-8.
    """
    if not frame.startswith(_CALL):
        return None
    id_at, id_end = _text_at(frame, len(_CALL), _SHORT)
    name_at, name_end = _text_at(frame, id_end + len(_V3), _SHORT)
    at, end = _text_at(frame, name_end + 1, _TEXTS)
    if end != len(frame) or frame[id_end : id_end + len(_V3)] != _V3 or frame[name_end] != _ONE:
        return None
    try:
        id_, name = frame[id_at:id_end].decode("ascii"), frame[name_at:name_end].decode("ascii")
    except UnicodeDecodeError:
        return None
    return id_, name, frame[at:end]


def _text_at(frame: bytes, at: int, sizes: Mapping[int, int]) -> tuple[int, int]:
    """Return where the text at `at` begins and ends; that is beyond the frame if there is none."""
    head = frame[at] if at < len(frame) else 0
    if 0xA0 <= head <= 0xBF:
        return at + 1, at + 1 + head - 0xA0
    size = sizes.get(head)
    if size is None:
        return _NOWHERE
    return at + 1 + size, at + 1 + size + int.from_bytes(frame[at + 1 : at + 1 + size])


def _entry(header: Mapping[object, object], key: str) -> object:
    """Return the header's entry, under a key that Python 2 peers may send as bytes."""
    value = header.get(key)
    return header.get(key.encode()) if value is None else value


def _ids(header: object) -> tuple[Id | None, Id | None]:
    if not isinstance(header, dict):
        return None, None
    return _id(_entry(header, "message_id")), _id(_entry(header, "response_to"))


def _id(value: object) -> Id | None:
    return value if isinstance(value, Id) and not isinstance(value, bool) else None


def _unpack(data: bytes, unicode_errors: str = "surrogateescape") -> object:
    """Return one value whose structure `_skip` has approved. Raises `Malformed`."""
    try:
        value: object = msgpack.unpackb(data, unicode_errors=unicode_errors)
    except UnicodeDecodeError:
        raise
    except ValueError as error:  # a map's key that is no string, first of all
        raise Malformed(f"not msgpack as ZeroRPC uses it: {error}") from error
    return value


def _decoded(data: bytes, *, bins: bool) -> object:
    """Return one value with its text as `str`, as `_text` has it. Raises `Malformed`."""
    try:
        value = _unpack(data, "strict")
    except UnicodeDecodeError:
        return _text(_unpack(data))
    return _text(value) if bins else value


def _text(value: object) -> object:
    """Return `value` with UTF-8 as str and everything else as bytes, whichever it was."""
    text = value
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            text = value.decode("utf-8")
    elif isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            text = value.encode("utf-8", "surrogateescape")
    elif isinstance(value, list):
        text = [_text(one) for one in value]
    elif isinstance(value, dict):
        text = {_text(key): _text(one) for key, one in value.items()}
    return text


def _kind(value: object) -> str:
    names = {dict: "a map", list: "an array", str: "a string", bytes: "bytes", type(None): "nil"}
    return names.get(type(value), f"{value!r:.40}")


def _skip(data: bytes, at: int, values: int, depth: int) -> tuple[int, int, bool]:
    """Walk over the value at `at`: return where it ends, the budget left, and if bin was seen.

    Raises `Malformed` if it is cut short, is none, or holds more than `values` or nests deeper
    than `depth`.
    """
    outer: list[int] = []  # what is left to read of the containers around this one
    left, bins = 1, False
    while left or outer:
        if not left:
            left = outer.pop()
            continue
        left -= 1
        values -= 1
        if at >= len(data):
            raise Malformed("the event is cut short")
        head = data[at]
        at += 1
        size, length, factor = _HEADS[head]
        if length:
            size = int.from_bytes(data[at : at + length])
            at += length
        if factor == _SCALAR:
            at += size
            bins = bins or 0xC4 <= head <= 0xC6
        elif factor == _UNKNOWN:
            raise Malformed(f"msgpack type 0x{head:02x} is no part of ZeroRPC")
        elif size * factor > values:
            raise Malformed("more values than one event may hold")
        else:
            outer.append(left)
            left = size * factor
            if len(outer) > depth:
                raise Malformed(f"arrays or maps nested deeper than {depth}")
    if at > len(data):
        raise Malformed("the event is cut short")
    return at, values, bins


_SCALAR, _ARRAY, _MAP, _UNKNOWN = 0, 1, 2, 3

# For each head byte of the msgpack specification: the size of what follows it, or the bytes in
# which that size is written; and what it counts: bytes, values, or pairs of them.
_HEADS: tuple[tuple[int, int, int], ...] = (
    *((0, 0, _SCALAR),) * 128,  # positive integers
    *((pairs, 0, _MAP) for pairs in range(16)),
    *((values, 0, _ARRAY) for values in range(16)),
    *((size, 0, _SCALAR) for size in range(32)),  # str
    *((0, 0, _SCALAR), (0, 0, _UNKNOWN), (0, 0, _SCALAR), (0, 0, _SCALAR)),  # nil, -, false, true
    *((0, 1, _SCALAR), (0, 2, _SCALAR), (0, 4, _SCALAR)),  # bin
    *((0, 0, _UNKNOWN),) * 3,  # ext
    *((4, 0, _SCALAR), (8, 0, _SCALAR)),  # float
    *((1, 0, _SCALAR), (2, 0, _SCALAR), (4, 0, _SCALAR), (8, 0, _SCALAR)) * 2,  # uint, int
    *((0, 0, _UNKNOWN),) * 5,  # fixext
    *((0, 1, _SCALAR), (0, 2, _SCALAR), (0, 4, _SCALAR)),  # str
    *((0, 2, _ARRAY), (0, 4, _ARRAY), (0, 2, _MAP), (0, 4, _MAP)),
    *((0, 0, _SCALAR),) * 32,  # negative integers
)
