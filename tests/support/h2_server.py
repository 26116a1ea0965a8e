"""A gRPC server on `h2`, another implementation of HTTP/2, whose every step a test decides.

async with H2Server(calls) as server: ... server.endpoint

`calls` is a coroutine function that is run for each stream with a `Served`. It may `receive`
messages, `send` some, and `end` the stream, or reach the connection below it.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError

Headers = list[tuple[str, str]]


class Served:
    """One stream, as the server has it."""

    def __init__(self, connection: "H2ServerProtocol", stream: int, headers: Headers) -> None:
        self.connection = connection
        self.stream = stream
        self.headers = dict(headers)
        self.messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.opened = False
        self.task: asyncio.Task[None] | None = None
        self._rest = b""

    @property
    def method(self) -> str:
        return self.headers[":path"].rpartition("/")[2]

    def feed(self, data: bytes) -> None:
        self._rest += data
        while len(self._rest) >= 5:
            end = 5 + int.from_bytes(self._rest[1:5], "big")
            if len(self._rest) < end:
                break
            self.messages.put_nowait(self._rest[5:end])
            self._rest = self._rest[end:]

    async def receive(self) -> bytes | None:
        """Return the client's next message, None once it has sent all."""
        return await self.messages.get()

    def open(self, *more: tuple[str, str], status: str = "200") -> None:
        self.opened = True
        headers = [(":status", status), ("content-type", "application/grpc"), *more]
        self.connection.http.send_headers(self.stream, headers)
        self.connection.flush()

    async def send(self, *messages: bytes) -> None:
        await self.send_raw(
            b"".join(b"\0" + len(each).to_bytes(4, "big") + each for each in messages)
        )

    async def send_raw(self, data: bytes) -> None:
        if not self.opened:
            self.open()
        http = self.connection.http
        while data:
            room = http.local_flow_control_window(self.stream)
            size = min(len(data), room, http.max_outbound_frame_size)
            if size:
                http.send_data(self.stream, data[:size])
                self.connection.flush()
                data = data[size:]
            else:
                await self.connection.news()

    def end(self, status: int = 0, message: str = "") -> None:
        trailers = [("grpc-status", str(status)), ("grpc-message", message)]
        if not self.opened:
            first = [(":status", "200"), ("content-type", "application/grpc")]
            trailers = [*first, *trailers]
        self.connection.http.send_headers(self.stream, trailers, end_stream=True)
        self.connection.flush()


class H2ServerProtocol(asyncio.Protocol):
    """One connection. `http` is h2's, `transport` the socket's."""

    def __init__(self, server: "H2Server") -> None:
        self.server = server
        self.http = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.streams: dict[int, Served] = {}
        self.received = 0  # bytes
        self._news = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.connections.append(self)
        self.http.initiate_connection()
        if self.server.settings:
            self.http.update_settings(self.server.settings)
        self.flush()

    def flush(self) -> None:
        if data := self.http.data_to_send():
            self.transport.write(data)

    async def news(self) -> None:
        """Wait until the client has sent anything."""
        self._news.clear()
        await self._news.wait()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self.server.mute:
            return
        try:
            events = self.http.receive_data(data)
        except ProtocolError as error:
            self.server.errors.append(error)
            self.flush()
            self.transport.close()
            return
        for event in events:
            if isinstance(event, RequestReceived):
                headers = [(str(name), str(value)) for name, value in event.headers]
                served = Served(self, event.stream_id, headers)
                self.streams[event.stream_id] = served
                served.task = asyncio.create_task(self.server.run(served))
            elif isinstance(event, DataReceived):
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self.streams[event.stream_id].feed(event.data)
            elif isinstance(event, StreamEnded):
                self.streams[event.stream_id].messages.put_nowait(None)
            elif isinstance(event, StreamReset):
                self.server.resets.append(event.stream_id)
                self._cancel(self.streams.get(event.stream_id))
        self.flush()
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        for served in self.streams.values():
            self._cancel(served)

    @staticmethod
    def _cancel(served: Served | None) -> None:
        if served is not None and served.task is not None:
            served.task.cancel()


class H2Server:
    """Listens on loopback while entered. What `h2` has against the client is in `errors`."""

    def __init__(
        self,
        calls: Callable[[Served], Awaitable[None]],
        settings: dict[int, int] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self._host = host
        self.settings = settings
        self.connections: list[H2ServerProtocol] = []
        self.errors: list[Exception] = []
        self.resets: list[int] = []
        self.mute = False  # receives, and does nothing
        self.endpoint = ""
        self._calls = calls
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: list[BaseException] = []

    async def run(self, served: Served) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._calls(served)
        except ProtocolError:
            pass  # the client has ended the stream
        except Exception as error:  # noqa: BLE001 - raised when the test ends
            self._failed.append(error)
        finally:
            self._tasks.discard(task)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: H2ServerProtocol(self), self._host, 0)
        listening: socket.socket = self._server.sockets[0]
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.endpoint = f"{host}:{listening.getsockname()[1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for connection in self.connections:
            connection.transport.abort()
        await asyncio.sleep(0)
        if error is None:
            assert not self._failed, self._failed
            assert not self.errors, self.errors
