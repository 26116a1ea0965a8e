"""Tell when processes live and die, by events: they hold a named pipe open, and its end tells."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from kontrol.process.command import Command

WAIT = 20.0  # seconds: a bound for what takes milliseconds
HOLD = 'exec 9>"$LIFE"; '  # at the start of a script: it and all below it hold the pipe


class Life:
    """A named pipe, `path`, that processes hold open: `up` reads lines, `gone` awaits the end."""

    def __init__(self, path: Path, reader: asyncio.StreamReader) -> None:
        self.path = path
        self._reader = reader

    async def line(self) -> str:
        """Return the next line that a process writes."""
        async with asyncio.timeout(WAIT):
            return (await self._reader.readline()).decode().strip()

    async def gone(self) -> None:
        """Wait until no process holds the pipe."""
        async with asyncio.timeout(WAIT):
            await self._reader.read()

    def is_gone(self) -> bool:
        """Whether no process holds the pipe now."""
        fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            while os.read(fd, 65536):
                pass
        except BlockingIOError:
            return False
        else:
            return True
        finally:
            os.close(fd)


@contextlib.asynccontextmanager
async def life(folder: Path) -> AsyncIterator[Life]:
    path = folder / "life"
    os.mkfifo(path)
    flags = os.O_RDONLY | os.O_NONBLOCK
    # The second stays open after the first has seen the end, so that later writers do not block.
    with os.fdopen(os.open(path, flags), "rb") as pipe, os.fdopen(os.open(path, flags), "rb"):
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            yield Life(path, reader)
        finally:
            transport.close()


def shell(
    script: str,
    *,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    grace: float = 5.0,
    stdin: bytes = b"",
) -> Command:
    environ = {"PATH": os.environ["PATH"], **(env or {})}
    return Command(("/bin/sh", "-c", script), environ, timeout=timeout, grace=grace, stdin=stdin)


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def resident(pid: int) -> int:
    """Return a process's resident set in bytes."""
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def is_empty(folder: Path) -> bool:
    return not list(folder.iterdir())


def real_path(folder: Path) -> str:
    return str(folder.resolve())
