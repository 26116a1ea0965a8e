"""What every process tells of itself, under the names that Prometheus' own libraries use."""

import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from kontrol import __version__
from kontrol.metrics.exposition import Metric

_SELF = Path("/proc/self")  # Linux; elsewhere what would come from it is not told


@dataclass(frozen=True, slots=True)
class Process:
    """This process. `started` is in seconds since 1970, `mode` what it was told to be."""

    mode: str = ""
    started: float = 0.0

    @classmethod
    def since_now(cls, mode: str) -> "Process":
        """Return this process, taken to start now."""
        return cls(mode, time.time())


def _resident(_: Process) -> int | None:
    try:
        pages = (_SELF / "statm").read_text("ascii").split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _cpu(_: Process) -> float:
    times = os.times()
    return times.user + times.system


def _entries(folder: str) -> int | None:
    try:
        return sum(1 for _ in (_SELF / folder).iterdir())
    except OSError:
        return None


PROCESS: tuple[Metric[Process], ...] = (
    Metric(
        "kontrol_build_info",
        "gauge",
        "Always 1; the labels tell the version, Python's, and KONTROL_MODE.",
        lambda p: [((__version__, ".".join(map(str, sys.version_info[:3])), p.mode), 1)],
        ("version", "python", "mode"),
    ),
    Metric(
        "process_start_time_seconds",
        "gauge",
        "When the process started, in seconds since 1970.",
        lambda p: p.started,
    ),
    Metric(
        "process_cpu_seconds_total",
        "counter",
        "CPU time spent, in user and system mode together.",
        _cpu,
    ),
    Metric("process_resident_memory_bytes", "gauge", "Resident memory.", _resident),
    Metric("process_open_fds", "gauge", "Open file descriptors.", lambda _: _entries("fd")),
    Metric(
        "process_max_fds",
        "gauge",
        "How many file descriptors may be open.",
        lambda _: resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    ),
    Metric("process_threads", "gauge", "Threads.", lambda _: _entries("task")),
)
