"""The socket: reads commands from clients, and writes one answer for each.

What a connection sends until it closes its side is one command. A connection whose first line is
`LINES` continues with one command per line. Each connection has a task of its own and bounded
memory, so a client that sends nothing, too much or too slowly, or that does not read, delays no
other: reads and writes have a timeout, and what is over the longest command is discarded.

A socket file without a listener is replaced; one with a listener is refused. A lock on the folder,
which leaves no file, separates two automatons that start at the same time.
"""

import asyncio
import fcntl
import os
import resource
import socket
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from automaton.protocol import MAX_COMMAND, encode, too_long

CLIENT_TIMEOUT = 10.0
"""Seconds for which a client may pause within a command, or leave an answer unread."""
BACKLOG = 1024
MAX_PATH = 107  # sun_path, unix(7), without its final NUL
SPARE_DESCRIPTORS = 100  # of the limit on open files: for pipes of scripts, logs and the loop
FINAL_ANSWERS = 1.0  # seconds in which answers are still delivered at the end
MODE = 0o660  # owner and group: in Kubernetes, sidecars share `fsGroup`

Obey = Callable[[bytes], Awaitable[str]]


class SocketError(Exception):
    """The socket cannot be used; the text says why, and how to fix it."""


class Listener:
    """A socket that listens at a path. Raises `SocketError` if it cannot, or another one does."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _locked(self.path.parent):
                _make_way(self.path)
                self.socket.bind(str(self.path))
                self._identity = _identity(self.path)
                self.path.chmod(MODE)
                self.socket.listen(BACKLOG)
        except OSError as error:
            self.socket.close()
            fix = "choose another with -s"
            if len(os.fsencode(self.path)) > MAX_PATH:
                fix = f"a socket's path has at most {MAX_PATH} bytes; choose a shorter one with -s"
            raise SocketError(f"{self.path}: {error.strerror or error}; {fix}") from error
        except SocketError:
            self.socket.close()
            raise
        self.socket.settimeout(0)

    def remove(self) -> None:
        """Stop listening, and remove the file if it is still ours."""
        with suppress(OSError), _locked(self.path.parent):
            if _identity(self.path) == self._identity:
                self.path.unlink()
        self.socket.close()


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _make_way(path: Path) -> None:
    """Remove a socket without a listener; raise if it has one, or if it is another kind of file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketError(f"{path} exists and is no socket; remove it, or choose another with -s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)  # a listener whose backlog is full says EAGAIN, without a wait
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass
    raise SocketError(f"{path} is that of a live automaton; end it, or choose another with -s")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock that keeps two starting instances apart; it is held for microseconds."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + 2.0
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # flock has no time limit of its own
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)


class Server:
    """Serves the clients of one listener."""

    def __init__(self, listener: Listener, obey: Obey) -> None:
        self._listener = listener
        self._obey = obey
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS
        self._clients: set[asyncio.Task[None]] = set()
        self._idle: set[asyncio.Task[None]] = set()  # those that wait for what a client sends
        self._tasks = asyncio.TaskGroup()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve while the context lasts. At its end, pending commands are still answered."""
        async with self._tasks:
            server = await asyncio.start_unix_server(
                self._accept, sock=self._listener.socket, backlog=BACKLOG
            )
            try:
                yield
            finally:
                server.close()
                for task in self._idle:
                    task.cancel()
                if self._clients:
                    await asyncio.wait(self._clients, timeout=FINAL_ANSWERS)
                for task in self._clients:
                    task.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= self._most:
            writer.write(f"KO {self._most} clients are connected; try again later\n".encode())
            writer.close()
            return
        task = self._tasks.create_task(self._attend(reader, writer))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._converse(reader, writer)
            writer.close()
            async with asyncio.timeout(CLIENT_TIMEOUT):
                await writer.wait_closed()
        except (OSError, TimeoutError):  # gone, or not reading
            return
        finally:
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Run one command, up to the end of what the client sends, or one per line."""
        received = bytearray()
        while chunk := await self._read(reader, writer, limit=CLIENT_TIMEOUT):
            received += chunk
            for mark in (b"LINES\n", b"LINES\r\n"):
                if received.startswith(mark):
                    del received[: len(mark)]
                    await self._lines(reader, writer, received)
                    return
            if len(received) > MAX_COMMAND:
                await self._say(writer, f"KO {too_long(len(received))}")
                async with asyncio.timeout(
                    CLIENT_TIMEOUT
                ):  # let it finish, or it misses the answer
                    while await reader.read(MAX_COMMAND):
                        pass
                return
        if chunk is not None:
            await self._answer(writer, bytes(received))

    async def _lines(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, received: bytearray
    ) -> None:
        skipping = False
        while True:
            while (end := received.find(b"\n")) >= 0:
                line = bytes(received[:end])
                del received[: end + 1]
                if not skipping:
                    await self._answer(writer, line)
                skipping = False
            if len(received) > MAX_COMMAND and not skipping:
                await self._say(writer, f"KO {too_long(len(received))}")
                skipping = True
            if skipping:
                received.clear()
            in_command = bool(received) or skipping
            chunk = await self._read(reader, writer, limit=CLIENT_TIMEOUT if in_command else None)
            if chunk:
                received += chunk
                continue
            if chunk is not None and received:
                await self._answer(writer, bytes(received))
            return

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: float | None
    ) -> bytes | None:
        """Return the next bytes, empty at the end, and None on a timeout."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("expected to run in a task")
        self._idle.add(task)
        try:
            async with asyncio.timeout(limit):
                return await reader.read(MAX_COMMAND)
        except TimeoutError:
            await self._say(
                writer,
                f"KO silent for {CLIENT_TIMEOUT:g} s in mid-command; close your side to end it",
            )
            return None
        finally:
            self._idle.discard(task)

    async def _answer(self, writer: asyncio.StreamWriter, command: bytes) -> None:
        await self._say(writer, await self._obey(command))

    async def _say(self, writer: asyncio.StreamWriter, text: str) -> None:
        writer.write(encode(text) + b"\n")
        async with asyncio.timeout(CLIENT_TIMEOUT):
            await writer.drain()
