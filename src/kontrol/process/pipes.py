"""Read what a command writes, while it runs, at any size and in bounded memory.

A pipe that nobody reads stops its writer, so both are drained from the start. What is kept is
bounded: all of stdout up to a limit, the tail of stderr; and what is passed on line by line is
bounded in length and rate, since a log is no place for 100 MB.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable

CHUNK = 256 * 1024
LINE_LIMIT = 8 * 1024  # bytes of one line that are passed on


class Drain:
    """Reads one pipe to its end and hands over each chunk; backpressure if `take` is awaitable."""

    def __init__(self, fd: int, take: Callable[[bytes], Awaitable[None] | None]) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._take = take
        self._over = False
        self._readable: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Read until the end, or after `finish` until nothing is there."""
        while True:
            try:
                chunk = os.read(self._fd, CHUNK)
            except BlockingIOError:
                if self._over:
                    return
                await self._wait()
                continue
            if not chunk:
                return
            handled = self._take(chunk)
            if handled is not None:
                await handled
            await asyncio.sleep(0)  # a fast writer must not keep the loop to itself

    def finish(self) -> None:
        """Tell that the writers are gone: what is in the pipe is all.

        A process that we do not own may have been handed the descriptor and never close it.
        """
        self._over = True
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        readable = self._readable = loop.create_future()
        loop.add_reader(self._fd, _resolve, readable)
        try:
            await readable
        finally:
            loop.remove_reader(self._fd)
            self._readable = None


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Tail:
    """The last `limit` bytes of what is added."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()

    def add(self, chunk: bytes) -> None:
        """Append, and forget what is too old."""
        self._kept += chunk[-self._limit :] if self._limit else b""
        del self._kept[: -self._limit or None]

    def __bytes__(self) -> bytes:
        return bytes(self._kept)


class Lines:
    """Cuts chunks into lines of text for a log: each cut to `LINE_LIMIT`, and not too many.

    `burst` lines may come at once, `rate` per second in the long run; what is over is dropped, and
    a line says how many were once there is room again, or at the end. Pure: time is an argument.
    """

    def __init__(self, *, burst: int = 1000, rate: float = 100.0) -> None:
        self._burst = burst
        self._rate = rate
        self._room = float(burst)
        self._last: float | None = None
        self._partial = bytearray()  # up to LINE_LIMIT of a line whose end has not come yet
        self._cut = 0  # bytes of it that were dropped
        self._dropped = 0

    def feed(self, chunk: bytes, now: float) -> list[str]:
        """Return the lines that this chunk, come at `now` (seconds), completes."""
        if self._last is not None:
            self._room = min(self._burst, self._room + (now - self._last) * self._rate)
        self._last = now
        lines: list[str] = []
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            if self._room < 1:  # skip at the speed of `count`: there may be a million lines
                self._dropped += chunk.count(b"\n", start)
                self._clear()
                start = chunk.rfind(b"\n") + 1
                break
            self._extend(chunk[start:end])
            lines += self._notice()
            lines.append(self._complete())
            start = end + 1
        self._extend(chunk[start:])
        return lines

    def end(self) -> list[str]:
        """Return what is left: a word on lines dropped, and a last line without its end."""
        lines = self._notice()
        if self._partial:
            lines.append(self._complete())
        return lines

    def _extend(self, part: bytes) -> None:
        room = LINE_LIMIT - len(self._partial)
        self._partial += part[:room]
        self._cut += max(0, len(part) - room)

    def _notice(self) -> list[str]:
        dropped, self._dropped = self._dropped, 0
        return [f"... {dropped} lines are not shown here ..."] if dropped else []

    def _complete(self) -> str:
        text = self._partial.decode("utf-8", "replace").removesuffix("\r")
        if self._cut:
            text += f" ... {self._cut} bytes cut"
        self._room -= 1
        self._clear()
        return text

    def _clear(self) -> None:
        self._partial.clear()
        self._cut = 0
