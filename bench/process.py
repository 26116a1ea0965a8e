"""What a process costs, from Linux's /proc."""

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


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
