"""Clients that write to Redis servers, and what they saw: no write that counts may be lost.

Each server has a client of its own, beside it, that writes all the time, whether or not the server
takes it: as clients do that have not heard yet of a new primary. A write is *taken* if the server
answers OK, and *acknowledged* if `WAIT` says then that a replica has it, too.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

PERIOD = 0.01  # seconds from one write of a client to its next
TIMEOUT = 0.5  # seconds after which a client gives up, and connects again
CONFIRM = 0.1  # seconds in which a replica has to confirm a write
GAP = 0.3  # seconds without a write after which a server is said to have stopped


@dataclass(frozen=True, slots=True)
class Write:
    """A write that a server took; times are monotonic."""

    server: str
    member: str
    sent: float
    taken: float
    acknowledged: bool


class Connection:
    """A connection to a Redis server's unix socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, *words: str) -> None:
        """Send a command."""
        self._writer.write(" ".join(words).encode() + b"\r\n")

    async def answer(self) -> str | list[str]:
        """Return the answer to a command; an error begins with `-`."""
        line = (await self._reader.readuntil(b"\r\n"))[:-2].decode()
        kind, text = line[:1], line[1:]
        if kind == "$":
            return (await self._reader.readexactly(int(text) + 2))[:-2].decode()
        if kind == "*":
            return [str(await self.answer()) for _ in range(int(text))]
        return line if kind == "-" else text


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Connection]:
    """A connection, for as long as the block runs. Raises `OSError`."""
    reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 20)
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()


async def ask(path: Path, *words: str, timeout: float = 5.0) -> str | list[str]:
    """Return a server's answer to one command, empty if it gives none in time."""
    with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
        async with asyncio.timeout(timeout), connected(path) as connection:
            connection.send(*words)
            return await connection.answer()
    return ""


class Writers:
    """Clients of some servers, which write into one set while the block runs."""

    def __init__(self, sockets: Mapping[str, Path], name: str) -> None:
        self.name = name
        self.writes: list[Write] = []
        self._sockets = sockets
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._client(server)) for server in self._sockets]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def taken(self, since: float, *, other_than: str) -> Write:
        """Return the first write that was sent after `since` and taken by another server."""
        seen = 0
        while True:
            for write in self.writes[seen:]:
                if write.sent >= since and write.server != other_than:
                    return write
            seen = len(self.writes)
            self._news.clear()
            await self._news.wait()

    async def acknowledged(self, more: int) -> None:
        """Wait until so many more writes are acknowledged."""
        seen = len(self.writes)
        while sum(write.acknowledged for write in self.writes[seen:]) < more:
            self._news.clear()
            await self._news.wait()

    async def _client(self, server: str) -> None:
        number = 0
        while True:
            with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                async with connected(self._sockets[server]) as to:
                    while True:
                        number += 1
                        async with asyncio.timeout(TIMEOUT):
                            await self._write(to, server, f"{server}-{number}")
                        await asyncio.sleep(PERIOD)
            await asyncio.sleep(PERIOD)

    async def _write(self, to: Connection, server: str, member: str) -> None:
        sent = time.monotonic()
        to.send("SADD", self.name, member)
        to.send("WAIT", "1", str(round(1000 * CONFIRM)))
        good = await to.answer() == "1"
        taken = time.monotonic()
        replicas = await to.answer()
        if good:
            acknowledged = isinstance(replicas, str) and replicas.isdigit() and replicas != "0"
            self.writes.append(Write(server, member, sent, taken, acknowledged))
            self._news.set()


def both_writable(writes: Sequence[Write]) -> float:
    """Return the seconds in which two servers took writes.

    A server takes writes from the end of the first of a stretch of them to the start of the last:
    what is between is certain, however late a client saw the answer. A stretch ends where the
    server took none for `GAP`.
    """
    stretches: dict[str, list[list[Write]]] = {}
    for write in sorted(writes, key=lambda write: write.sent):
        of = stretches.setdefault(write.server, [])
        if not of or write.sent - of[-1][-1].taken > GAP:
            of.append([])
        of[-1].append(write)
    spans = [
        (server, each[0].taken, max(each[-1].sent, each[0].taken + PERIOD))
        for server, of in stretches.items()
        for each in of
    ]
    return sum(
        max(0.0, min(end, other_end) - max(begin, other_begin))
        for number, (server, begin, end) in enumerate(spans)
        for other, other_begin, other_end in spans[:number]
        if other != server
    )


def longest_pause(writes: Sequence[Write], since: float) -> float:
    """Return the longest time between two of these writes, or `since` and the first after it."""
    times = sorted({since, *(write.taken for write in writes if write.taken > since)})
    return max((later - earlier for earlier, later in pairwise(times)), default=0.0)
