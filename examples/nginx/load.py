"""Requests, one after another, and how each of them went.

requests = Requests(address, port)
async with load(requests, clients=8):
    await requests.more(200)
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

PAUSE = 0.005  # seconds between two requests of a client
TIMEOUT = 10.0  # seconds for a request


@dataclass(frozen=True, slots=True)
class Done:
    """A request: when it began (monotonic time), seconds that it took, and what it got.

    `wrong` says how it failed, "" if it did not.
    """

    begun: float
    took: float
    backend: str
    wrong: str = ""


class Requests:
    """Clients that each send one request after another, each on a connection of its own."""

    def __init__(self, address: str, port: int, method: str = "GET") -> None:
        self.done: list[Done] = []
        self._address = address
        self._port = port
        self._head = f"{method} / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n"
        self._head += "Content-Length: 0\r\n\r\n"
        self._news = asyncio.Event()

    async def client(self) -> None:
        """Send requests until cancelled."""
        while True:
            begun = time.monotonic()
            try:
                async with asyncio.timeout(TIMEOUT):
                    status, backend = await self._request()
                wrong = "" if status == "200" else f"status {status}"
            except (OSError, TimeoutError, ValueError) as error:
                backend, wrong = "", type(error).__name__
            self.done.append(Done(begun, time.monotonic() - begun, backend, wrong))
            self._news.set()
            await asyncio.sleep(PAUSE)

    async def _request(self) -> tuple[str, str]:
        """Return status and body. Raises `ValueError` if there is none."""
        reader, writer = await asyncio.open_connection(self._address, self._port)
        try:
            writer.write(self._head.encode())
            answer = (await reader.read()).decode()
        finally:
            writer.close()
        head, _, body = answer.partition("\r\n\r\n")
        _, status, _ = head.split(" ", 2)
        return status, body.strip()

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until `condition` holds: it is looked at after each request."""
        try:
            async with asyncio.timeout(60):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise TimeoutError(f"no {what} within 60 s") from None

    async def more(self, count: int = 200) -> None:
        """Wait for so many requests that begin from now on."""
        now = time.monotonic()

        def later() -> int:
            return sum(each.begun >= now for each in self.done[-2 * count :])

        await self.until(lambda: later() >= count, "more requests")


@asynccontextmanager
async def load(requests: Requests, clients: int) -> AsyncIterator[None]:
    """Send requests while the block runs."""
    tasks = [asyncio.create_task(requests.client()) for _ in range(clients)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
