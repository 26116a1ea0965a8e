"""What the tests of the RPC share: running servers, subprocesses with deadlines, raw peers."""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Self

import msgpack
import zmq

from kontrol.rpc.limits import Limits
from kontrol.rpc.server import Method, Server

PEERS = Path(__file__).parent / "peers"

DEADLINE = 30.0
"""Seconds that anything here may take; what is expected to is written beside it."""

BEAT = 0.5
"""Seconds between heartbeats in tests that do not use the default.

The reference library takes a busy machine's pause of twice that for a loss.
"""


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06"
"""How a connection begins (ZMTP 3.0, without security); `ROUTER` or `DEALER` follows."""


@contextlib.asynccontextmanager
async def serving(
    methods: Mapping[str, Method],
    *,
    heartbeat: float = BEAT,
    limits: Limits | None = None,
) -> AsyncIterator[int]:
    """Run a server in this loop; gives its port."""
    server = Server(methods, heartbeat=heartbeat, limits=limits or Limits())
    async with running(server) as port:
        yield port


@contextlib.asynccontextmanager
async def running(server: Server, port: int = 0) -> AsyncIterator[int]:
    """Bind a server and run it in this loop; gives its port."""
    port = await server.bind("127.0.0.1", port)
    task = asyncio.create_task(server.serve())
    try:
        yield port
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        server.close()  # a task cancelled before its first step ran nothing, not even `finally`


async def shaken(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a TCP connection that has shaken hands as a dealer, free to send what it likes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GREETING + READY + b"DEALER")
    async with asyncio.timeout(DEADLINE):
        await reader.readexactly(len(GREETING) + 1)
        await reader.readexactly((await reader.readexactly(1))[0])
    return reader, writer


def framed(*parts: bytes) -> bytes:
    """Return the parts of a short ZeroMQ message as its bytes on a connection."""
    more = b"".join(b"\x01" + bytes([len(part)]) + part for part in parts[:-1])
    return more + b"\x00" + bytes([len(parts[-1])]) + parts[-1]


@contextlib.asynccontextmanager
async def peer(script: str, *args: object) -> AsyncIterator[Process]:
    """Run one of the scripts in `peers`, and see it ended."""
    # fmt: off
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", str(PEERS / script), *map(str, args),
        stdin=PIPE, stdout=PIPE, limit=2**22,
    )
    # fmt: on
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        await process.communicate()


async def line(process: Process) -> str:
    """Return the next line that a peer prints."""
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        text = await process.stdout.readline()
    assert text, f"the peer ended with status {await process.wait()}"
    return text.decode("utf-8").rstrip("\n")


def say(process: Process, text: str) -> None:
    """Send a peer one line."""
    assert process.stdin is not None
    process.stdin.write(text.encode("utf-8") + b"\n")


async def until(condition: Callable[[], bool], within: float = DEADLINE) -> None:
    """Wait for what no event tells, such as another process's doing."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


def descriptors(process: Process) -> int:
    """Return how many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{process.pid}/fd"))  # noqa: PTH208 - no paths needed


def resident(process: Process) -> int:
    """Return the KiB of memory that a process holds."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0])


class RawPeer:
    """A dealer of libzmq's that sends what it is told and keeps what it gets, decoded."""

    def __init__(self, port: int) -> None:
        self.got: asyncio.Queue[Any] = asyncio.Queue()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(f"tcp://127.0.0.1:{port}")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.getsockopt(zmq.FD), self._drain)  # type: ignore[arg-type]  # bytes for other options

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._socket.getsockopt(zmq.FD))  # type: ignore[arg-type]  # see above
        self._socket.close()

    def send(self, *parts: bytes) -> None:
        self._socket.send_multipart(parts, zmq.NOBLOCK)
        self._loop.call_soon(self._drain)  # sending may quieten the descriptor

    def _drain(self) -> None:
        with contextlib.suppress(zmq.Again):
            while not self._socket.closed:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
                self.got.put_nowait(msgpack.unpackb(parts[-1]))

    def emit(self, header: object, name: object, args: object, use_bin_type: bool = True) -> None:
        self.send(b"", msgpack.packb([header, name, args], use_bin_type=use_bin_type))

    def call(self, message_id: object, name: object, *args: object) -> None:
        self.emit({"message_id": message_id, "v": 3}, name, list(args))

    async def receive(self, *, beats: bool = False) -> list[Any]:
        """Return the next event, leaving out heartbeats."""
        async with asyncio.timeout(DEADLINE):
            while True:
                event: list[Any] = await self.got.get()
                if beats or event[1] != "_zpc_hb":
                    return event
