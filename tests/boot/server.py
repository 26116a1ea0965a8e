"""A small HTTP server for tests: each connection is one request, answered by a function.

An answer can be sent as any bytes at all, or not: servers that break off, drip or hang are what
the client is for.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    target: str
    headers: Mapping[str, str]  # names in lower case

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(frozen=True, slots=True)
class Reply:
    status: int = 200
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        body = self.body.encode("utf-8")
        lines = [f"HTTP/1.1 {self.status} Whatever", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("utf-8") + body


class Hang:
    """In place of a reply: nothing comes, and the connection stays."""


class Drip:
    """In place of a reply: a long one begins, an octet at a time."""


Answer = Reply | bytes | Hang | Drip
Handler = Callable[[Request], Awaitable[Answer]]


@dataclass
class Served:
    """A server under way: its base URL, and every request so far."""

    url: str
    port: int
    requests: list[Request] = field(default_factory=list)


@contextlib.asynccontextmanager
async def serve(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Served]:
    """Serve on loopback until the block ends."""
    tasks: set[asyncio.Task[None]] = set()
    served: Served

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("utf-8")
            first, *lines = head.rstrip().split("\r\n")
            method, target, _ = first.split(" ")
            headers = {k.lower(): text.strip() for k, _, text in (x.partition(":") for x in lines)}
            request = Request(method, target, headers)
            served.requests.append(request)
            answer = await handler(request)
            if isinstance(answer, Hang):
                await asyncio.Event().wait()
            elif isinstance(answer, Drip):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                while True:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.02)  # the pace of the drip
            elif isinstance(answer, Reply):
                writer.write(answer.encode())
            else:
                writer.write(answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # the client has gone, or never spoke
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(talk(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    served = Served(f"{'https' if tls else 'http'}://127.0.0.1:{port}", port)
    try:
        yield served
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
