"""An observer on the network: it sees what passes, and can send what it has seen."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Tap:
    """Passes bytes between callers and `port`, and keeps what passes, each way, in order."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.sent: list[bytes] = []
        self.answered: list[bytes] = []
        self._outer: asyncio.StreamWriter | None = None

    @property
    def seen(self) -> bytes:
        return b"".join(self.sent + self.answered)

    def inject(self, data: bytes) -> None:
        """Send something to the server over the last connection."""
        assert self._outer is not None
        self._outer.write(data)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with connected(self._port) as (inner, outer), asyncio.TaskGroup() as group:
                self._outer = outer
                group.create_task(self._pass(reader, outer, self.sent))
                group.create_task(self._pass(inner, writer, self.answered))
        finally:
            await ended(writer)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: list[bytes]
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                kept.append(data)
                writer.write(data)
        writer.close()


async def ended(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def connected(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        await ended(writer)


@contextlib.asynccontextmanager
async def tapped(port: int) -> AsyncIterator[tuple[Tap, int]]:
    tap = Tap(port)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(tap.accept(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield tap, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
