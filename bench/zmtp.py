"""The bytes of a ZeroRPC caller on a ZeroMQ connection, at few CPU cycles for each call. Pure.

ZMTP 3 with the NULL mechanism, as a DEALER (RFC 23 and 37 of ZeroMQ). A call is made once, as the
bytes of its two message parts, and sent again with its message id overwritten. Answers are split
from the stream and recognised by a few bytes; nothing else of them is read. So a process can be
many thousand agents and cost less than the master that it loads.

It is independent of `kontrol.rpc`, which it measures: it trusts its peer, and has no bounds.
"""

import msgpack

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_SOCKET_TYPE = b"\x0bSocket-Type\x00\x00\x00\x06DEALER"
READY = bytes((4, 6 + len(_SOCKET_TYPE))) + b"\x05READY" + _SOCKET_TYPE

_MORE, _LONG, _COMMAND = 1, 2, 4
_VERSION_AT = 10  # in the greeting
_ID = b"0" * 16
COUNTER = b"1000000000"
"""What a record contains in the places that `Call.change` counts up."""


class Broken(Exception):
    """The peer sent what is no answer to a caller."""


class Call:
    """One call as the bytes of its message."""

    __slots__ = ("_at", "_counters", "data")

    def __init__(self, method: str, *args: object) -> None:
        header = {"message_id": _ID.decode(), "v": 3}
        body: bytes = msgpack.packb([header, method, args])
        size = bytes((len(body),)) if len(body) < 256 else len(body).to_bytes(8, "big")
        flags = 0 if len(body) < 256 else _LONG
        self.data = bytearray(bytes((_MORE, 0, flags)) + size + body)
        self._at = self.data.index(_ID)
        self._counters: list[int] = []
        at = self.data.find(COUNTER)
        while at >= 0:
            self._counters.append(at)
            at = self.data.find(COUNTER, at + 1)

    def number(self, number: int) -> bytearray:
        """Return the bytes to send, under a message id made of `number`."""
        self.data[self._at : self._at + 16] = b"%016x" % number
        return self.data

    def change(self, count: int) -> None:
        """Let each `COUNTER` among the arguments say `count` more than that."""
        digits = b"%d" % (int(COUNTER) + count)
        for at in self._counters:
            self.data[at : at + len(COUNTER)] = digits


class Incoming:
    """What arrives on one connection. `ready` once the peer may be sent messages."""

    __slots__ = ("_greeted", "_rest", "owed", "ready")

    def __init__(self) -> None:
        self.ready = False
        self.owed = b""  # what the peer is to be sent in answer to its commands
        self._greeted = False
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; return the last part of each message that is complete. Raises `Broken`."""
        if self._rest:
            data = self._rest + data
        size, at = len(data), 0
        if not self._greeted:
            if size < len(GREETING):
                self._rest = data
                return []
            if data[0] != 0xFF or data[_VERSION_AT] < 3 or data[12:17] != b"NULL\0":
                raise Broken(f"expected ZMTP 3 without keys, got {data[:32]!r}")
            self._greeted, at = True, len(GREETING)
        messages = []
        while at + 2 <= size:
            flags, start, length = data[at], at + 2, data[at + 1]
            if flags & _LONG:
                start = at + 9
                length = int.from_bytes(data[at + 1 : start], "big")
            end = start + length
            if start > size or end > size:
                break
            at = end
            if flags & _COMMAND:
                self._command(data[start:end])
            elif not flags & _MORE:
                messages.append(data[start:end])
        self._rest = data[at:]
        return messages

    def _command(self, body: bytes) -> None:
        if body.startswith(b"\x05READY"):
            self.ready = True
        elif body.startswith(b"\x04PING"):
            self.owed += bytes((_COMMAND, len(body) - 2)) + b"\x04PONG" + body[7:]
        elif body.startswith(b"\x05ERROR"):
            raise Broken(f"the peer refuses the connection: {body[7:]!r}")


def outcome(answer: bytes) -> str | None:
    """Return "" for an answer that is a result, the error's name for an error, None for others.

    Heartbeats are no answers.
    """
    if answer.find(b"\xa2OK\x91", 0, 200) > 0:  # \x91 follows no letter in UTF-8
        return ""
    _, name, args = msgpack.unpackb(answer)
    name = name.decode() if isinstance(name, bytes) else name
    if name == "OK":
        return ""
    if name != "ERR":
        return None
    error = args[0]
    return error.decode("utf-8", "replace") if isinstance(error, bytes) else str(error)
