"""A TCP proxy on loopback that loses what a test tells it to lose.

async with Proxy("127.0.0.1:2379") as proxy:
    store = EtcdStore(EtcdConfig((proxy.endpoint,)))
    proxy.deaf()      # requests still arrive, answers are swallowed, until cut() or heal()
    proxy.cut()       # every connection is reset
    proxy.dead()      # a partition: what is sent waits, either way; new connections hang
    proxy.delay = 2   # seconds that everything takes from now on, each way
    proxy.heal()      # what waited arrives, as after a partition; what was swallowed is lost
"""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self


class Proxy:
    """One listening port in front of one `host:port`."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._deaf = False
        self._swallowed = asyncio.Event()
        self._healed = asyncio.Event()
        self._healed.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.endpoint = ""
        self.delay = 0.0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.endpoint = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def deaf(self) -> None:
        """Swallow answers; `swallowed` tells when one was."""
        self._deaf = True
        self._swallowed.clear()

    def dead(self) -> None:
        """Hold everything, and leave new connections hanging."""
        self._healed.clear()

    def heal(self) -> None:
        """Pass everything again, on connections old and new."""
        self._deaf = False
        self._healed.set()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def swallowed(self) -> None:
        """Wait until an answer was swallowed since `deaf`."""
        async with asyncio.timeout(10):
            await self._swallowed.wait()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._healed.wait()
            there, back = await asyncio.open_connection(self._host, self._port)
            self._writers.add(back)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._carry(reader, back, answers=False))
                    group.create_task(self._carry(there, writer, answers=True))
            finally:
                self._writers.discard(back)
        except OSError:
            writer.transport.abort()
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _carry(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        """Carry what comes from `source` to `sink`, in order, and end with it."""
        arrived: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        writing = asyncio.create_task(self._deliver(arrived, sink, answers=answers))
        loop = asyncio.get_running_loop()
        try:
            with suppress(OSError):
                while data := await source.read(65536):
                    arrived.put_nowait((loop.time() + self.delay, data))
        finally:
            writing.cancel()
            await asyncio.wait({writing})
            sink.transport.abort()  # the other direction ends with this one

    async def _deliver(
        self,
        arrived: asyncio.Queue[tuple[float, bytes]],
        sink: asyncio.StreamWriter,
        *,
        answers: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while True:
                at, data = await arrived.get()
                if answers and self._deaf:
                    self._swallowed.set()
                    continue
                await self._healed.wait()
                if at > loop.time():
                    await asyncio.sleep(at - loop.time())
                sink.write(data)
                await sink.drain()
