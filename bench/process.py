"""What a process costs, from Linux's /proc, and how to let it have less than it wants."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Never

_TICKS = os.sysconf("SC_CLK_TCK")
_PERIOD = 0.05  # seconds in which a process that is held back runs once


def cpu(pid: int) -> float:
    """Return the seconds of CPU that a process has used, its ended threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def status(pid: int, key: str) -> int:
    """Return the sum of the numbers of the lines that contain `key` of the process's status."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    return sum(int(line.split()[1]) for line in text.splitlines() if key in line)


def resident(pid: int) -> float:
    """Return MB resident."""
    return status(pid, "VmRSS") / 1024


def threads(pid: int) -> int:
    """Return how many threads there are."""
    return status(pid, "Threads")


class Meter:
    """The CPU of some processes, by name."""

    def __init__(self, **pids: int) -> None:
        self._pids = pids
        self._before = {name: cpu(pid) for name, pid in pids.items()}

    def read(self) -> dict[str, float]:
        """Return the seconds since the last time, or the start."""
        now = {name: cpu(pid) for name, pid in self._pids.items()}
        spent = {name: now[name] - before for name, before in self._before.items()}
        self._before = now
        return spent


@asynccontextmanager
async def held_to(pid: int, share: float) -> AsyncIterator[None]:
    """Let a process run for `share` of the time meanwhile: it is stopped for the rest.

    So it gets that share of a core at most, and less on a busy machine. 0: all of the time.
    """
    holding = asyncio.create_task(_hold(pid, share)) if 0 < share < 1 else None
    try:
        yield
    finally:
        if holding is not None:
            holding.cancel()
            await asyncio.wait([holding])
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def _hold(pid: int, share: float) -> Never:
    while True:
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(_PERIOD * (1 - share))
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(_PERIOD * share)
