"""Redis servers in network namespaces, kept by Kontrol as in `examples/redis`, or by Sentinel."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from bench.network import Namespace, Network
from bench.redis_writes import ask
from kontrol.store.embedded import embedded_etcd

EXAMPLE = Path(__file__).parents[1] / "examples" / "redis"
TTL = 3
"""Seconds after which a pod that does not report, or a server that does not answer, is gone."""
DEADLINE = 90.0  # seconds for anything to happen

_GRACE = 10.0  # seconds; a Redis refuses SIGTERM while it writes its first file
_POLL = 0.05  # seconds

T = TypeVar("T")


async def until(condition: Callable[[], Awaitable[T | None]]) -> T:
    """Ask until the answer is true; returns it."""
    async with asyncio.timeout(DEADLINE):
        while not (answer := await condition()):  # noqa: ASYNC110 - Redis has no event for it
            await asyncio.sleep(_POLL)
    return answer


class Process:
    """A process whose output can be waited on."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.lines: list[str] = []
        self._log = log
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        with self._log.open("a", encoding="utf-8") as log:
            async for raw in self.process.stdout:
                line = raw.decode("utf-8", "replace")
                log.write(f"{time.monotonic():.3f} {line}")
                log.flush()
                async with self._news:
                    self.lines.append(line)
                    self._news.notify_all()

    async def logged(self, pattern: str, since: int = 0) -> re.Match[str]:
        """Wait for a line that matches, after the first `since` lines."""
        while True:
            for line in self.lines[since:]:
                if found := re.search(pattern, line):
                    return found
            since = len(self.lines)
            async with self._news:
                while len(self.lines) == since:
                    await self._news.wait()

    async def end(self, how: signal.Signals) -> None:
        """Signal it, and wait for its end."""
        if self.process.returncode is None:
            self.process.send_signal(how)
        await self.process.wait()
        await asyncio.wait({self._reading}, timeout=1)  # what it left may have its output
        self._reading.cancel()


class Ensemble(ABC):
    """Redis servers, one in each namespace, of which one is the primary."""

    name: str

    def __init__(self, folder: Path, network: Network) -> None:
        self.folder = folder
        self.network = network
        self.pods = {f"redis-{n}": pod for n, pod in enumerate(network.pods, 1)}
        self.sockets = {pod: folder / pod / "redis.sock" for pod in self.pods}
        self._servers: dict[str, Process] = {}
        self._started: list[Process] = []

    @abstractmethod
    async def start_pod(self, pod: str) -> None:
        """Start a pod that does not run."""

    @abstractmethod
    async def stop_pod(self, pod: str) -> None:
        """Have a pod end as a supervisor would; returns when that has begun."""

    @abstractmethod
    async def kill_leader(self) -> None:
        """Wait until a fail-over begins, and kill the process that conducts it."""

    @abstractmethod
    async def restore(self) -> None:
        """Start again what does not run any more."""

    async def kill_server(self, pod: str) -> None:
        """Kill the process of a Redis alone."""
        os.kill(int((self.folder / pod / "redis.pid").read_text("utf-8")), signal.SIGKILL)

    async def stopped(self, pod: str) -> None:
        """Wait until a pod that was to stop has ended, for `_GRACE` seconds; then kill it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_GRACE):
                await self._servers[pod].process.wait()
        await self.pods[pod].signal(signal.SIGKILL)
        await self._servers[pod].process.wait()

    async def healthy(self) -> str:
        """Wait until one server is a primary that all others follow; returns its pod."""
        return await until(self._primary)

    async def _primary(self) -> str | None:
        answers = await asyncio.gather(
            *(ask(path, "INFO", "replication", timeout=1) for path in self.sockets.values())
        )
        told = dict(zip(self.sockets, map(str, answers), strict=True))
        primaries = [pod for pod, text in told.items() if "role:master" in text]
        links = [pod for pod, text in told.items() if "master_link_status:up" in text]
        good = f"min_slaves_good_slaves:{len(self.pods) - 1}"
        if len(primaries) == 1 and len(links) == len(self.pods) - 1 and good in told[primaries[0]]:
            return primaries[0]
        return None

    async def _run(
        self, name: str, *command: str, pod: Namespace | None = None, **variables: str
    ) -> Process:
        """Start a process in the folder of that name, in the namespace of a pod if one is given."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("KONTROL_")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        process = await asyncio.create_subprocess_exec(
            *(pod.prefix if pod else ()),
            *command,
            cwd=folder,
            env={**inherited, "PATH": path, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._started.append(Process(process, folder / "log"))
        return self._started[-1]

    async def close(self) -> None:
        """End all."""
        for pod in self.pods.values():
            await pod.signal(signal.SIGKILL)
        for process in self._started:
            await process.end(signal.SIGKILL)


class Kontrol(Ensemble):
    """Kept by the example's callback, with two masters."""

    name = "Kontrol"

    def __init__(self, folder: Path, network: Network, etcd: str) -> None:
        super().__init__(folder, network)
        self._etcd = etcd
        self._masters: dict[str, Process] = {}

    async def start(self) -> None:
        """Start masters and pods."""
        for number, host in enumerate(self.network.hosts[:2], 1):
            await self._start_master(f"master-{number}", host)
        for pod in self.pods:
            await self.start_pod(pod)

    async def _start_master(self, name: str, host: str) -> None:
        command = (str(EXAMPLE / "master"), name, host)
        self._masters[name] = await self._run(name, *command, KONTROL_ETCD=self._etcd)

    async def start_pod(self, pod: str) -> None:
        """Start a pod that does not run."""
        space = self.pods[pod]
        masters = "|".join(self.network.hosts[:2])
        command = (str(EXAMPLE / "pod"), pod, space.address, masters, str(self.folder / pod))
        self._servers[pod] = await self._run(pod, *command, pod=space)

    async def stop_pod(self, pod: str) -> None:
        """Have a pod end: it hands over itself."""
        self._servers[pod].process.send_signal(signal.SIGTERM)

    async def kill_leader(self) -> None:
        """Wait until a run begins, and kill the master that leads."""
        await _kill_first(self._masters.values(), r"run \d+ \(attempt")

    async def restore(self) -> None:
        """Start again what does not run any more."""
        for (name, master), host in zip(
            list(self._masters.items()), self.network.hosts, strict=False
        ):
            if master.process.returncode is not None:
                await self._start_master(name, host)
        for pod, process in list(self._servers.items()):
            if process.process.returncode is not None:
                await self.start_pod(pod)


class Sentinel(Ensemble):
    """Kept by three Sentinels, with servers of the same settings."""

    name = "Sentinel"

    async def start(self) -> None:
        """Start servers and Sentinels, and wait until these know of each other."""
        first, *others = self.pods
        for pod in self.pods:
            (self.folder / pod).mkdir()
            shutil.copy(EXAMPLE / "redis.conf", self.folder / pod)
        await self._start_server(first, None)
        for pod in others:
            await self._start_server(pod, first)
        await self.healthy()
        self._sentinels: dict[str, Process] = {}
        for number, host in enumerate(self.network.hosts, 1):
            await self._start_sentinel(f"sentinel-{number}", host, self.pods[first].address)
        for name in self._sentinels:
            await until(partial(self._agrees, self.folder / name / "sentinel.sock"))

    async def _agrees(self, sentinel: Path) -> bool:
        answer = await ask(sentinel, "SENTINEL", "ckquorum", "ensemble")
        return str(answer).startswith(f"OK {len(self._sentinels)}")

    async def _start_sentinel(self, name: str, host: str, primary: str) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        config = self.folder / name / "sentinel.conf"
        if primary:
            config.write_text(
                f"port 26379\nbind {host}\nunixsocket sentinel.sock\nprotected-mode no\n"
                f"sentinel announce-ip {host}\nsentinel monitor ensemble {primary} 6379 2\n"
                f"sentinel down-after-milliseconds ensemble {1000 * TTL}\n"
                "sentinel failover-timeout ensemble 10000\n"
                f"sentinel parallel-syncs ensemble {len(self.pods)}\n",
                "utf-8",
            )
        self._sentinels[name] = await self._run(name, "redis-server", "sentinel.conf", "--sentinel")

    async def _start_server(self, pod: str, primary: str | None) -> None:
        follow = ("--replicaof", f"{self.pods[primary].address} 6379") if primary else ()
        pidfile = str(self.folder / pod / "redis.pid")
        command = ("redis-server", "redis.conf", "--pidfile", pidfile, *follow)
        self._servers[pod] = await self._run(pod, *command, pod=self.pods[pod])

    async def start_pod(self, pod: str) -> None:
        """Start a pod that does not run, as a replica."""
        primary = await until(self._believed)
        await self._start_server(pod, primary if primary != pod else None)

    async def _believed(self) -> str | None:
        """Return the primary by what all Sentinels say, None while they do not agree."""
        command = ("SENTINEL", "get-master-addr-by-name", "ensemble")
        paths = [self.folder / name / "sentinel.sock" for name in self._sentinels]
        answers = await asyncio.gather(*(ask(path, *command) for path in paths))
        said = {answer[0] for answer in answers if answer}
        found = [pod for pod, at in self.pods.items() if said == {at.address}]
        return found[0] if found and all(answers) else None

    async def stop_pod(self, pod: str) -> None:
        """Hand over by the operator's command, repeated while it is refused; then end the server.

        A Sentinel knows for up to ten seconds of no replica that is good enough.
        """
        await until(self._hands_over)
        await until(partial(self._is_replica, pod))
        self._servers[pod].process.send_signal(signal.SIGTERM)

    async def _hands_over(self) -> bool:
        path = self.folder / "sentinel-1" / "sentinel.sock"
        return await ask(path, "SENTINEL", "FAILOVER", "ensemble") == "OK"

    async def _is_replica(self, pod: str) -> bool:
        return "role:slave" in str(await ask(self.sockets[pod], "INFO", "replication"))

    async def kill_leader(self) -> None:
        """Wait until a Sentinel is elected, and kill it."""
        await _kill_first(self._sentinels.values(), r"\+elected-leader")

    async def restore(self) -> None:
        """Start again what does not run any more."""
        for (name, sentinel), host in zip(
            list(self._sentinels.items()), self.network.hosts, strict=True
        ):
            if sentinel.process.returncode is not None:
                await self._start_sentinel(name, host, "")
        for pod, process in list(self._servers.items()):
            if process.process.returncode is not None:
                await self.start_pod(pod)


async def _kill_first(processes: Iterable[Process], pattern: str) -> None:
    """Kill the first of some processes that logs a line that matches."""
    waiting = {
        asyncio.create_task(each.logged(pattern, len(each.lines))): each for each in processes
    }
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
    await waiting[done.pop()].end(signal.SIGKILL)


@asynccontextmanager
async def kontrol(folder: Path, network: Network) -> AsyncIterator[Kontrol]:
    """An ensemble that Kontrol keeps, with an etcd of its own."""
    async with embedded_etcd() as endpoints:
        made = Kontrol(folder, network, ",".join(endpoints))
        try:
            await made.start()
            yield made
        finally:
            await made.close()


@asynccontextmanager
async def sentinel(folder: Path, network: Network) -> AsyncIterator[Sentinel]:
    """An ensemble that Sentinels keep."""
    made = Sentinel(folder, network)
    try:
        await made.start()
        yield made
    finally:
        await made.close()
