"""What a command writes, on its way to the caller: in pieces of text, and never much of it."""

import asyncio
import codecs

ROOM = 4
"""Pieces that wait for the caller; each is what one read of a pipe gave, 64 KiB on Linux."""


class Outbox:
    """Pieces in order: `put` waits while `ROOM` are unread, `get` returns None after `close`."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(ROOM)
        self._pieces: asyncio.Queue[dict[str, object] | None] = asyncio.Queue()

    async def put(self, piece: dict[str, object]) -> None:
        """Add a piece once there is room."""
        await self._room.acquire()
        self._pieces.put_nowait(piece)

    def close(self) -> None:
        """Tell that no more comes."""
        self._pieces.put_nowait(None)

    async def get(self) -> dict[str, object] | None:
        """Return the next piece once it is there, or None if that was all."""
        piece = await self._pieces.get()
        self._room.release()
        return piece


class Pieces:
    """Cuts a stream of bytes into pieces for a caller: `str` where it is UTF-8, else `bytes`.

    Nothing is lost: all pieces together, encoded again, are the stream. A character that a read
    has cut in two waits for its rest.
    """

    def __init__(self, name: str, outbox: Outbox) -> None:
        self._name = name
        self._outbox = outbox
        self._rest = b""

    async def put(self, chunk: bytes) -> None:
        """Pass on what is whole, once the outbox has room."""
        data = self._rest + chunk
        try:
            text, used = codecs.utf_8_decode(data, "strict", False)  # noqa: FBT003  # no keywords
        except UnicodeDecodeError:
            self._rest = b""
            await self._outbox.put({self._name: data})
            return
        self._rest = data[used:]
        if text:
            await self._outbox.put({self._name: text})

    def rest(self) -> list[dict[str, object]]:
        """Return what is left when all has been put: half of a character, if any."""
        return [{self._name: self._rest}] if self._rest else []


def joined(output: bytes) -> str | bytes:
    """Return lines joined by newlines: output without its last line's end. `str` if UTF-8."""
    lines = output.removesuffix(b"\n")
    try:
        return lines.decode("utf-8")
    except UnicodeDecodeError:
        return lines
