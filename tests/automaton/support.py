"""A real automaton under test: started, spoken to, awaited, and searched for survivors.

Nothing here sleeps: tests await lines of the log (`automaton -d` writes every event and every line
of output to standard error), answers, and exits, each with a deadline.
"""

import asyncio
import os
import re
import shutil
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

DEADLINE = 60.0
MARK = "AUTOMATON_TEST"
AUTOMATON = (sys.executable, "-m", "automaton")

# What `socat - PATH` does, for machines without it: send, close that side, print the answer.
HALF_CLOSING = """
import shutil, socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    s.sendall(sys.stdin.buffer.read())
    s.shutdown(socket.SHUT_WR)
    while chunk := s.recv(65536):
        sys.stdout.buffer.write(chunk)
"""


def socat(path: str, timeout: float = DEADLINE) -> list[str]:
    """Return the command line of socat, or of its equal."""
    if shutil.which("socat"):
        return ["socat", f"-t{timeout:g}", "-", f"UNIX-CONNECT:{path}"]
    return [sys.executable, "-c", HALF_CLOSING, path]


class Automaton:
    """One that runs. `lines` is what it has said on standard error so far."""

    def __init__(self, process: asyncio.subprocess.Process, socket: Path, mark: str) -> None:
        self.process = process
        self.socket = str(socket)
        self.pid = process.pid
        self.lines: list[str] = []
        self._mark = f"{MARK}={mark}".encode()
        self._seen = 0
        self._news = asyncio.Condition()

    async def listen(self) -> None:
        """Gather its lines, to the end."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            async with self._news:
                self.lines.append(line.decode().rstrip("\n"))
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()

    async def says(self, pattern: str) -> str:
        """Await the next line, after those awaited before, in which `pattern` is found."""

        def found() -> int | None:
            for number in range(self._seen, len(self.lines)):
                if re.search(pattern, self.lines[number]):
                    return number + 1
            return None

        try:
            async with asyncio.timeout(DEADLINE), self._news:
                await self._news.wait_for(lambda: found() is not None)
        except TimeoutError:
            raise AssertionError(f"{pattern!r} not in {self.lines[self._seen :]}") from None
        self._seen = found() or 0
        return self.lines[self._seen - 1]

    async def ask(self, command: str | bytes, timeout: float = DEADLINE) -> str:
        """Send a command over the bare socket."""
        raw = command if isinstance(command, bytes) else command.encode()
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(self.socket)
            try:
                writer.write(raw)
                await writer.drain()
                writer.write_eof()
                return (await reader.read()).decode().removesuffix("\n")
            finally:
                writer.close()
                await writer.wait_closed()

    async def socat(self, command: str) -> str:
        """`echo command | socat - socket`."""
        _, out = await run(*socat(self.socket), stdin=command + "\n")
        return out.removesuffix("\n")

    async def ctl(self, command: str) -> str:
        """`automaton ctl socket command`, and check that its status fits its answer."""
        status, out = await run(*AUTOMATON, "ctl", "--timeout", "20", self.socket, command)
        assert status == (1 if out.startswith("KO ") else 0)
        return out.removesuffix("\n")

    def signal(self, number: int) -> None:
        """Signal the automaton itself."""
        self.process.send_signal(number)

    async def exit(self) -> int:
        """Await its end, and see that it left nothing behind; return its status."""
        async with asyncio.timeout(45):
            status = await self.process.wait()
        assert self.survivors() == []
        assert not os.access(self.socket, os.F_OK)
        return status

    async def die(self) -> int:
        """DIE, and await the end."""
        assert await self.ask("DIE") == "OK"
        return await self.exit()

    def survivors(self) -> list[int]:
        """Return the processes that stem from this automaton, whatever they did to hide."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and int(folder.name) != self.pid:
                try:
                    environment = (folder / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                if self._mark in environment:
                    found.append(int(folder.name))
        return found


async def run(
    *argv: str, stdin: str = "", timeout: float = 60.0, cwd: Path | None = None
) -> tuple[int, str]:
    """Run a command; return its status and its standard output."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=cwd
    )
    try:
        async with asyncio.timeout(timeout):
            out, _ = await process.communicate(stdin.encode())
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, out.decode()


@asynccontextmanager
async def automaton(
    folder: Path,
    manifest: str,
    *options: str,
    ready: bool = True,
    command: tuple[str, ...] = AUTOMATON,
    **environment: str,
) -> AsyncIterator[Automaton]:
    """Run a manifest in `folder`. A manifest with `States(` in it is Python."""
    name = "machine.py" if "States(" in manifest else "machine.yml"
    (folder / name).write_text(manifest, encoding="utf-8")
    socket = folder / "socket"
    mark = uuid.uuid4().hex
    process = await asyncio.create_subprocess_exec(
        *command,
        name,
        "-d",
        *("-s", str(socket)),
        *options,
        cwd=folder,
        env={**os.environ, **environment, MARK: mark},
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    running = Automaton(process, socket, mark)
    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(running.listen())
        try:
            if ready:
                await running.says(r"\(start\) ->")
            yield running
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            for pid in running.survivors():
                os.kill(pid, signal.SIGKILL)
            await listening


Say = Callable[[Automaton, str], Coroutine[Any, Any, str]]
CLIENTS: dict[str, Say] = {"socat": Automaton.socat, "ctl": Automaton.ctl}
