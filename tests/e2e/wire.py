"""A wire that can be cut without a word: a TCP relay whose ends see no close and no reset."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Coroutine
from types import TracebackType
from typing import Self


class Wire:
    """Relays connections made to `host` and `port` (0: the system's choice) to `target`."""

    def __init__(self, target: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self._target = target.rpartition(":")
        self._at = (host, port)
        self._open = asyncio.Event()
        self._open.set()
        self._lost = 0  # connections numbered below this are black holes
        self._made = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.endpoint = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, *self._at)
        host, port = self._server.sockets[0].getsockname()
        self.endpoint = f"{host}:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def part(self) -> None:
        """A partition: what is sent waits, either way; new connections hang."""
        self._open.clear()

    def heal(self) -> None:
        """End the partition: what waited arrives."""
        self._open.set()

    def lose(self) -> None:
        """Turn the connections there are into black holes; new ones are good."""
        self._lost = self._made

    def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        number = self._made
        self._made += 1
        self._own(self._relay(number, reader, writer))

    def _own(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, number: int, reader: StreamReader, writer: StreamWriter) -> None:
        ends = [writer]
        try:
            await self._open.wait()
            host, _, port = self._target
            there, back = await asyncio.open_connection(host, int(port))
            ends.append(back)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(number, reader, back))
                group.create_task(self._carry(number, there, writer))
        except* OSError:
            pass  # one end has closed, or never was: so is the other closed
        finally:
            for end in ends:
                end.transport.abort()

    async def _carry(self, number: int, source: StreamReader, sink: StreamWriter) -> None:
        while data := await source.read(65536):
            await self._open.wait()
            if number < self._lost:
                continue
            sink.write(data)
            await sink.drain()
        raise ConnectionResetError
