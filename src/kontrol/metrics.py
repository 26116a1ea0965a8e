"""Metrics: tables of rows, their text format, those of every process, and statsd.

A row says what a metric is and how to read it from its source; the pages of the documentation are
made from the same rows. The text format is Prometheus', version 0.0.4. Names follow Prometheus'
conventions: the unit at the end, in base units; `_total` for what only rises. The metrics of every
process have the names that Prometheus' own libraries use.

The original's four counters are sent to a statsd server as it sent them: each event is one
datagram, `name,tier=kontrol:1|c`, telegraf's form with the tag in the name. They never delay
anything: a datagram that cannot be sent immediately is dropped. The server's name is looked up
again from time to time, since its address may change.
"""

import asyncio
import logging
import math
import os
import resource
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Never, TypeVar

from kontrol import __version__
from kontrol.resolver import Resolve

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

S = TypeVar("S")

Values = tuple[str, ...]
"""The values of a metric's labels, in the order of their names."""

Total = tuple[int, float]
"""The numbers of a summary: how many there were, and their sum."""


@dataclass(frozen=True)
class Metric(Generic[S]):
    """One metric of a source `S`.

    `read` returns a number, or None if there is none now; with `labels`, pairs of their
    values and a number. A summary's numbers are `Total`s: it has no quantiles.
    """

    name: str
    kind: Literal["counter", "gauge", "summary"]
    help: str
    read: Callable[[S], "float | Total | Iterable[tuple[Values, float | Total]] | None"]
    labels: tuple[str, ...] = ()


def render(metrics: Iterable[Metric[S]], source: S) -> str:
    """Return the metrics of `source`, each with its help and type, in the order of the table."""
    return "".join(_family(metric, source) for metric in metrics)


def _family(metric: Metric[S], source: S) -> str:
    lines = [
        f"# HELP {metric.name} {_escape(metric.help)}\n",
        f"# TYPE {metric.name} {metric.kind}\n",
    ]
    for values, value in _samples(metric, source):
        pairs = zip(metric.labels, values, strict=True)
        inner = ",".join(f'{name}="{_quote(text)}"' for name, text in pairs)
        labels = f"{{{inner}}}" if inner else ""
        if isinstance(value, tuple):
            count, total = value
            lines.append(f"{metric.name}_sum{labels} {_number(total)}\n")
            lines.append(f"{metric.name}_count{labels} {count}\n")
        else:
            lines.append(f"{metric.name}{labels} {_number(value)}\n")
    return "".join(lines)


def _samples(metric: Metric[S], source: S) -> Iterable[tuple[Values, float | Total]]:
    found = metric.read(source)
    if found is None:
        return ()
    if isinstance(found, int | float):
        return (((), found),)
    if isinstance(found, tuple):
        return (((), found),)
    return found


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(+value)  # of True, 1


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _quote(text: str) -> str:
    return _escape(text).replace('"', r"\"")


_SELF = Path("/proc/self")  # Linux; elsewhere its metrics are left out


@dataclass(frozen=True, slots=True)
class Process:
    """This process. `started` is in seconds since 1970, `mode` is KONTROL_MODE."""

    mode: str = ""
    started: float = 0.0

    @classmethod
    def since_now(cls, mode: str) -> "Process":
        """Return this process, as if it started now."""
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
        "Always 1; the labels are the version, Python's, and KONTROL_MODE.",
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


log = logging.getLogger(__name__)

NAMES = ("keepalive_emitted", "callback_invoked", "lock_obtained", "md5_changed")

_EARLY = 64  # events that wait for the first look-up
_LOOK_UP_EVERY = 60.0  # seconds
_TIMEOUT = 10.0  # seconds for one


class Statsd:
    """Sends counters to a server while `run` runs. `resolve` looks its name up off the loop."""

    def __init__(self, host: str, port: int, *, resolve: Resolve) -> None:
        self._host = host
        self._port = port
        self._resolve = resolve
        self._early: deque[str] = deque(maxlen=_EARLY)
        self._address = ""
        self._socket: socket.socket | None = None
        self._problem = ""

    def count(self, name: str) -> None:
        """Count one event, a name of `NAMES`. Never blocks, never raises."""
        if self._socket is None:
            self._early.append(name)
        else:
            self._send(self._socket, name)

    async def run(self) -> Never:
        """Keep the server's address up to date, until cancelled."""
        try:
            while True:
                await self._look_up()
                await asyncio.sleep(_LOOK_UP_EVERY)
        finally:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    async def _look_up(self) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                addresses = await self._resolve(self._host, self._port)
            if not addresses:
                raise OSError("the look-up found no address")
            if self._address not in addresses:
                self._open(addresses[0])
        except OSError as error:  # a timeout is one
            self._complain(str(error) or "its name was not found in time")

    def _open(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        new = socket.socket(family, socket.SOCK_DGRAM)
        try:
            new.setblocking(False)  # noqa: FBT003 - the standard library's signature
            new.connect((address, self._port))
        except OSError:
            new.close()
            raise
        if self._socket is not None:
            self._socket.close()
        self._socket, self._address, self._problem = new, address, ""
        while self._early:
            self._send(new, self._early.popleft())

    def _send(self, opened: socket.socket, name: str) -> None:
        try:
            opened.send(f"{name},tier=kontrol:1|c".encode("ascii"))
        except BlockingIOError:
            pass
        except OSError as error:  # nothing listens there, as ICMP reported for an earlier datagram
            self._complain(str(error))

    def _complain(self, why: str) -> None:
        """Log a problem, once until it is another one, or another address is found."""
        if why != self._problem:
            self._problem = why
            log.warning(
                "KONTROL_STATSD: %s port %d gets no counters: %s", self._host, self._port, why
            )
