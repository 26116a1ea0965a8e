"""Pods in processes of their own, and `kontrol invoke` as its user runs it."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.etcd import LAUNCHER

DEADLINE = 60.0


@dataclass
class Crowd:
    """Pods of one process, which the test may stop and kill."""

    process: Process
    pods: list[dict[str, Any]]

    @property
    def master(self) -> str:
        """Where `pods()` is answered."""
        return f"127.0.0.1:{self.pods[0]['port']}"

    def high_water(self) -> int:
        """Return the most memory that the process ever had, in bytes."""
        return high_water(self.process.pid)


def high_water(pid: int) -> int:
    """Return the most memory that a process ever had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) * 1024


@contextlib.asynccontextmanager
async def crowd(count: int, name: str = "pod") -> AsyncIterator[Crowd]:
    """Run pods; at the end, see them gone."""
    # fmt: off
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LAUNCHER, sys.executable, "-m", "tests.e2e.pods", str(count), name,
        stdout=PIPE, stderr=asyncio.subprocess.DEVNULL, limit=2**20,
    )
    # fmt: on
    try:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            yield Crowd(process, json.loads(await process.stdout.readline()))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def start(*words: str, environ: Mapping[str, str], prefix: Sequence[str] = ()) -> Process:
    """Start `kontrol invoke` with these words, by the command `prefix` if there is one."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("KONTROL_")}
    return await asyncio.create_subprocess_exec(
        *(*prefix, sys.executable, "-c", LAUNCHER),
        *(sys.executable, "-m", "kontrol", "invoke", *words),
        env={**inherited, **environ},
        stdout=PIPE,
        stderr=PIPE,
        limit=2**20,
    )


@dataclass(frozen=True)
class Ran:
    """What came of a command line."""

    status: int
    out: list[str]
    err: str


async def result(process: Process) -> Ran:
    """Return what comes of it."""
    try:
        async with asyncio.timeout(DEADLINE):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ran(process.returncode, out.decode("utf-8").splitlines(), err.decode("utf-8"))


async def invoke(*words: str, **environ: str) -> Ran:
    """Run `kontrol invoke` with these words."""
    return await result(await start(*words, environ=environ))
