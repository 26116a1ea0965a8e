"""Daemons on loopback, an etcd that syncs its disk, and a callback that reports its start.

The callback is a one-line shell script, or another one, that writes a line into a FIFO.
"""

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kontrol.store.embedded import embedded_etcd
from kontrol.store.etcd import EtcdConfig, EtcdStore
from kontrol.store.protocol import Range

TTL, FOVER = 25, 15
QUIET = {"KONTROL_DAMPER": "3600", "KONTROL_DAMPER_MAX": "3600"}
"""Settings of a master that runs no callback while it is measured."""
PODS = "/kontrol/default/bench/pods/"
"""The prefix in etcd of the pods."""

_PAGE = 5000  # pods read at a time
_STARTED = '#!/bin/sh\necho "$RUN" > FIFO\n'


class Stage:
    """Daemons, and the FIFO at which the callback reports: `started`, monotonic time and line."""

    def __init__(self, folder: Path, etcd: str, etcd_pid: int, callback: str) -> None:
        self.folder = folder
        self.etcd = etcd
        self.etcd_pid = etcd_pid
        self.port = free_port()
        self.started: asyncio.Queue[tuple[float, str]] = asyncio.Queue()
        self._daemons: list[Daemon] = []
        fifo = folder / "started"
        os.mkfifo(fifo)
        self._fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        self._callback = folder / "callback"
        self._callback.write_text(callback.replace("FIFO", str(fifo)), encoding="utf-8")
        self._callback.chmod(0o755)

    def _read(self) -> None:
        now = time.monotonic()
        for line in os.read(self._fd, 65536).decode().splitlines():
            self.started.put_nowait((now, line))

    async def next_start(self, within: float = 60.0) -> tuple[float, str]:
        """Return when the next callback started, in monotonic time, and what it wrote."""
        async with asyncio.timeout(within):
            return await self.started.get()

    async def close(self) -> None:
        """Stop listening, and end the daemons that still run."""
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        for daemon in self._daemons:
            if daemon.process.returncode is None:
                await daemon.end(signal.SIGKILL)

    async def daemon(self, name: str, host: str = "127.0.0.1", **settings: str) -> "Daemon":
        """Start a daemon; master or agent as `settings` say."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("KONTROL_")}
        environment = inherited | {
            "KONTROL_ID": name,
            "KONTROL_IP": host,
            "KONTROL_BIND": host,
            "KONTROL_PORT": str(self.port),
            "KONTROL_HTTP_PORT": "0",
            "KONTROL_ETCD": self.etcd,
            "KONTROL_LABELS": json.dumps({"app": "bench", "role": "bench"}),
            "KONTROL_ANNOTATIONS": json.dumps(
                {"kontrol.unity3d.com/master": f"127.0.0.1|127.0.0.2:{self.port}"}
            ),
            "KONTROL_CALLBACK": str(self._callback),
            "KONTROL_DAMPER": "0",
            "KONTROL_TTL": str(TTL),
            "KONTROL_FOVER": str(FOVER),
            "KONTROL_LOG": "json",
            "KONTROL_CONTROL": str(self.folder / f"{name}.sock"),
            **settings,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "kontrol", env=environment, stdout=subprocess.PIPE
        )
        started = Daemon(name, process)
        self._daemons.append(started)
        return started

    async def master(self, name: str = "m1", host: str = "127.0.0.1", **settings: str) -> "Daemon":
        """Start a master, and wait until it leads."""
        started = await self.daemon(name, host, KONTROL_MODE="master", **settings)
        await started.until("leader, in term")
        return started

    async def pods(self) -> dict[str, int]:
        """Return the live pods: their keys, each with the revision at which it joined.

        A pod that was lost and came back has another revision.
        """
        found: dict[str, int] = {}
        async with EtcdStore(EtcdConfig(tuple(self.etcd.split(",")))) as store:
            # Keys are base 62: the first digit splits them into pages that fit an answer.
            for digit in "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_":
                answer = await store.range(Range(PODS + digit, prefix=True, keys_only=True))
                found |= {kv.key.removeprefix(PODS): kv.create_revision for kv in answer.kvs}
        return found


class Daemon:
    """A daemon whose log can be waited on."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process
        self.lines: asyncio.Queue[tuple[float, str]] = asyncio.Queue()
        self._listening = asyncio.create_task(self._listen())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    async def _listen(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.put_nowait((time.monotonic(), line.decode()))

    async def until(self, text: str) -> float:
        """Wait for a line; returns when it came."""
        async with asyncio.timeout(60):
            while True:
                at, line = await self.lines.get()
                if text in line:
                    return at

    async def end(self, how: signal.Signals = signal.SIGTERM) -> float:
        """Signal it; returns when that was, once it is gone or, by SIGSTOP, stopped."""
        at = time.monotonic()
        self.process.send_signal(how)
        if how is signal.SIGSTOP:
            return at
        await self.process.wait()
        await self._listening
        return at


@asynccontextmanager
async def stage(callback: str = _STARTED) -> AsyncIterator[Stage]:
    """A stage with a new etcd. `callback` is a script; `FIFO` in it is where it reports."""
    with tempfile.TemporaryDirectory(prefix="kontrol-bench-") as folder:
        children: set[int] = set()
        async with embedded_etcd(children=children) as endpoints:
            [etcd_pid] = children
            found = Stage(Path(folder), ",".join(endpoints), etcd_pid, callback)
            try:
                yield found
            finally:
                await found.close()


def free_port() -> int:
    """Return a port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def most_agents(wanted: int) -> int:
    """Return how many agents one process may connect: descriptors are limited."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(wanted, most - 200)
