"""What a security mechanism of ZMTP is to the machine, and NULL, which has no security.

Pure. A handshake consists of commands (RFC 23/ZMTP, section "Mechanisms"): a body is the command's
name, after the length of that in one byte, and its data. Both ends of every mechanism finally tell
each other metadata, as names and values (`Socket-Type: DEALER`).
"""

from collections.abc import Mapping
from typing import ClassVar, Protocol

_READY = b"\x05READY"


class HandshakeError(Exception):
    """The peer broke the mechanism, or is refused. The peer is sent `tell`, if that is not empty.

    What is told to a peer must not depend on secrets: CURVE tells almost nothing (RFC 26).
    """

    def __init__(self, reason: str, *, tell: bytes = b"") -> None:
        super().__init__(reason)
        self.tell = tell


class Mechanism(Protocol):
    """One end of a security handshake, and of what protects the traffic after it."""

    name: ClassVar[bytes]
    """As in the greeting: NULL or CURVE."""

    ready: bool
    """Whether the handshake is complete: messages may flow."""

    metadata: Mapping[bytes, bytes]
    """The peer's, once `ready`; the names in lower case."""

    def start(self) -> bytes | None:
        """Return the body of the command that this end sends first, or None."""
        ...

    def receive(self, command: bytes) -> bytes | None:
        """Take the body of a handshake command; return that of a command to send, or None.

        Raises `HandshakeError`.
        """
        ...

    def seal(self, frame: bytes, *, more: bool, command: bool) -> bytes:
        """Return what replaces a frame on the wire. Raises `HandshakeError`."""
        ...

    def unseal(self, body: bytes) -> tuple[bytes, bool, bool]:
        """Return what was sealed: the frame, whether more follow, and whether it is a command.

        Raises `HandshakeError`.
        """
        ...


class Null:
    """The mechanism without security (RFC 23): each end sends READY with its metadata."""

    name: ClassVar[bytes] = b"NULL"

    def __init__(self, metadata: Mapping[bytes, bytes]) -> None:
        self.ready = False
        self.metadata: Mapping[bytes, bytes] = {}
        self._own = metadata

    def start(self) -> bytes | None:
        """Return READY."""
        return _READY + encode_metadata(self._own)

    def receive(self, command: bytes) -> bytes | None:
        """Take the peer's READY."""
        if not command.startswith(_READY):
            raise HandshakeError("expected the command READY", tell=b"expected READY")
        self.metadata = parse_metadata(command[len(_READY) :])
        self.ready = True
        return None

    def seal(self, frame: bytes, *, more: bool, command: bool) -> bytes:  # noqa: ARG002
        """Return the frame: it goes as it is."""
        return frame

    def unseal(self, body: bytes) -> tuple[bytes, bool, bool]:
        """Raise `HandshakeError`: nothing is ever sealed."""
        raise HandshakeError(f"{len(body)} sealed bytes without a key")


def encode_metadata(metadata: Mapping[bytes, bytes]) -> bytes:
    """Return metadata as it ends a handshake command: names up to 255 bytes."""
    return b"".join(
        bytes((len(name),)) + name + len(value).to_bytes(4) + value
        for name, value in metadata.items()
    )


def parse_metadata(data: bytes) -> dict[bytes, bytes]:
    """Return the metadata in `data`, names in lower case. Raises `HandshakeError`."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        start = at + 1 + data[at] + 4
        name = data[at + 1 : start - 4].lower()
        at = start + int.from_bytes(data[start - 4 : start])
        if not name or start > len(data) or at > len(data):
            raise HandshakeError("malformed metadata", tell=b"malformed metadata")
        if name in found:  # one reader would take the first, another the last
            raise HandshakeError("metadata has a name twice", tell=b"metadata has a name twice")
        found[name] = data[start:at]
    return found
