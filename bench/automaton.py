"""Automaton: how soon a script starts, how fast states change, and what an idle machine costs.

Scripts report the time of their start through a FIFO. The limit is a bare process that does the
same, started from this one, in the same run.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench import Option
from bench.process import resident, status
from bench.table import Row, milliseconds, quantiles

TITLE = "Automaton"
OPTIONS = {
    "rounds": Option(200, 20, "transitions of each kind"),
    "idle": Option(60.0, 2.0, "seconds that it is left alone"),
}
_MANIFEST = """
initial: idle
terminal: end
states:
- {tag: idle, next: [idle, work, quick]}
- {tag: work, shell: echo > FIFO, next: [idle, work]}
- {tag: quick, shell: ':', next: [idle, quick]}
- {tag: end}
"""


class Starts:
    """A FIFO into which scripts write when they start."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._times: asyncio.Queue[float] = asyncio.Queue()
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def _read(self) -> None:
        now = time.perf_counter()
        for _ in os.read(self._fd, 4096):
            self._times.put_nowait(now)

    async def next(self) -> float:
        """Return when the next script started."""
        async with asyncio.timeout(20):
            return await self._times.get()

    def close(self) -> None:
        """Stop listening."""
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)


async def ask(path: Path, command: str) -> str:
    """Send one command; return its answer."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(command.encode())
    writer.write_eof()
    answer = await reader.readline()
    writer.close()
    return answer.decode().strip()


def launch(folder: Path, socket: Path) -> subprocess.Popen[bytes]:
    """Start an automaton."""
    command = [sys.executable, "-m", "automaton", "machine.yml", "-s", str(socket)]
    return subprocess.Popen(command, cwd=folder)


@asynccontextmanager
async def machine(folder: Path) -> AsyncIterator[tuple[int, Path, float]]:
    """Run an automaton; yield its pid, its socket, and the seconds until that was usable."""
    socket = folder / "socket"
    began = time.perf_counter()
    process = launch(folder, socket)
    try:
        while True:
            try:
                await ask(socket, "STATE")
                break
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(0.001)
        yield process.pid, socket, time.perf_counter() - began
        await ask(socket, "DIE")
    finally:
        process.terminate()
        process.wait()


def spawn(script: str) -> subprocess.Popen[bytes]:
    """Start a script as automaton does, and no more."""
    return subprocess.Popen(["/bin/sh", "-c", script])


async def spawns(folder: Path, starts: Starts, rounds: int) -> list[float]:
    """Measure a bare process, from the call to its first word."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        process = spawn(f"echo > {folder}/fifo")
        taken.append(await starts.next() - began)
        process.wait()
    return taken


async def starting(socket: Path, starts: Starts, rounds: int) -> list[float]:
    """Measure from `GOTO` to the start of the script, with no script running."""
    taken = []
    for _ in range(rounds):
        await ask(socket, "WAIT idle")
        began = time.perf_counter()
        await ask(socket, "GOTO work")
        taken.append(await starts.next() - began)
    await ask(socket, "WAIT idle")
    return taken


async def waiting(socket: Path, rounds: int) -> list[float]:
    """Measure the round trip of `WAIT` for a state without a script."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        await ask(socket, "WAIT idle")
        taken.append(time.perf_counter() - began)
    return taken


async def one_after_another(socket: Path, state: str, rounds: int) -> float:
    """Return transitions per second, each awaited, on one connection in `LINES` mode."""
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(b"LINES\n")
    began = time.perf_counter()
    for _ in range(rounds):
        writer.write(f"WAIT {state}\n".encode())
        if await reader.readline() != b"OK\n":
            raise RuntimeError(f"WAIT {state} was refused")
    seconds = time.perf_counter() - began
    writer.close()
    return rounds / seconds


async def starts_of(folder: Path, rounds: int) -> list[float]:
    """Measure from the start of the process to an answer."""
    taken = []
    for _ in range(rounds):
        async with machine(folder) as (_, _, seconds):
            taken.append(seconds)
    return taken


async def run(*, rounds: int, idle: float) -> list[Row]:
    """Measure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = _MANIFEST.replace("FIFO", f"{folder}/fifo")
        (folder / "machine.yml").write_text(manifest, encoding="utf-8")
        starts = Starts(folder / "fifo")
        begun = await starts_of(folder, max(5, rounds // 20))
        async with machine(folder) as (pid, socket, _):
            bare = await spawns(folder, starts, rounds)
            goto = await starting(socket, starts, rounds)
            empty = await waiting(socket, rounds)
            scripted = await one_after_another(socket, "quick", rounds)
            unscripted = await one_after_another(socket, "idle", rounds)
            memory = resident(pid)
            before = status(pid, "ctxt_switches")
            await asyncio.sleep(idle)
            switches = status(pid, "ctxt_switches") - before
        starts.close()
    limit = statistics.median(bare)
    return [
        Row(
            "GOTO to process start, no script running",
            milliseconds(goto),
            f"bare process {milliseconds(bare)}",
            f"{statistics.median(goto) / limit:.1f} x",
            "157 ms (11-236)",
            values={**quantiles("goto", goto), **quantiles("process", bare)},
        ),
        Row(
            "WAIT round trip, state without script",
            milliseconds(empty),
            original="367 ms",
            values=quantiles("wait", empty),
        ),
        Row(
            "transitions per second, awaited, script ':'",
            f"{scripted:.0f}",
            f"bare process {1 / limit:.0f}",
            f"{scripted * limit:.2f} x",
            "1.99",
            values={"scripted_per_s": scripted},
        ),
        Row(
            "the same, state without script",
            f"{unscripted:.0f}",
            values={"unscripted_per_s": unscripted},
        ),
        Row(
            "start to socket usable",
            milliseconds(begun),
            original="172 ms",
            values=quantiles("start", begun),
        ),
        Row(
            "resident memory",
            f"{memory:.1f} MB",
            original="29.6 MB",
            values={"resident_mb": memory},
        ),
        Row(
            f"context switches, idle for {idle:g} s",
            str(switches),
            values={"switches": switches},
        ),
    ]
