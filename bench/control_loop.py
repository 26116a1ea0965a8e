"""The control loop, as real processes on loopback and an etcd that syncs its disk.

    python -m bench.control_loop [ROUNDS]

The callback is a one-line shell script that reports the time of its start through a FIFO. Limits
are measured in the same run: what etcd itself, or a bare process, takes for the part that cannot be
saved.
"""

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.table import Row, milliseconds, show
from kontrol.ensemble.pod import Keepalive
from kontrol.rpc.client import Client
from kontrol.rpc.errors import RpcError
from kontrol.store.embedded import embedded_etcd
from kontrol.store.etcd import EtcdConfig, EtcdStore
from kontrol.store.protocol import Put

_TTL, _FOVER = 25, 15
_LOADERS, _PODS_EACH, _PARALLEL, _LOAD_SECONDS = 2, 500, 64, 6.0


class Stage:
    """Daemons, and the FIFO at which the callback reports."""

    def __init__(self, folder: Path, etcd: str) -> None:
        self.folder = folder
        self.etcd = etcd
        self.port = _free_port()
        self.started: asyncio.Queue[tuple[float, str]] = asyncio.Queue()
        self._fifo = folder / "started"
        os.mkfifo(self._fifo)
        self._fd = os.open(self._fifo, os.O_RDWR | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        callback = folder / "callback"
        callback.write_text(f'#!/bin/sh\necho "$RUN" > {self._fifo}\n', encoding="utf-8")
        callback.chmod(0o755)
        self._callback = callback

    def _read(self) -> None:
        now = time.monotonic()
        for run in os.read(self._fd, 65536).decode().split():
            self.started.put_nowait((now, run))

    def close(self) -> None:
        """Stop listening."""
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

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
            "KONTROL_TTL": str(_TTL),
            "KONTROL_FOVER": str(_FOVER),
            "KONTROL_LOG": "json",
            "KONTROL_CONTROL": str(self.folder / f"{name}.sock"),
            **settings,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "kontrol", env=environment, stdout=subprocess.PIPE
        )
        return Daemon(name, process)


class Daemon:
    """A daemon whose log can be waited on."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process
        self.lines: asyncio.Queue[tuple[float, str]] = asyncio.Queue()
        self._listening = asyncio.create_task(self._listen())

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
        """Signal it; returns when that was, once it is gone."""
        at = time.monotonic()
        self.process.send_signal(how)
        await self.process.wait()
        await self._listening
        return at

    def resident(self) -> float:
        """MB resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """A stage with a new etcd."""
    with tempfile.TemporaryDirectory(prefix="kontrol-bench-") as folder:
        async with embedded_etcd() as endpoints:
            found = Stage(Path(folder), ",".join(endpoints))
            try:
                yield found
            finally:
                found.close()


async def _started(stage: Stage) -> float:
    async with asyncio.timeout(60):
        return (await stage.started.get())[0]


async def change_and_leave(rounds: int) -> list[Row]:
    """Payload change, and graceful leave, to the callback's start; memory meanwhile."""
    async with stage() as here:
        payload = here.folder / "payload.json"
        payload.write_text('"0"', encoding="utf-8")
        master = await here.daemon("m1", KONTROL_MODE="master")
        await master.until("leader, in term")
        agent = await here.daemon("a1", host="127.0.0.11", KONTROL_PAYLOAD=str(payload))
        await _started(here)
        await master.until("acknowledged")
        changes = []
        for number in range(rounds):
            await asyncio.sleep(0.1)  # changes that follow each other closely are one burst
            fresh = here.folder / "fresh"
            fresh.write_text(json.dumps(str(number + 1)), encoding="utf-8")
            begun = time.monotonic()
            fresh.replace(payload)
            changes.append(await _started(here) - begun)
            await master.until("acknowledged")
        memory = agent.resident(), master.resident()
        await agent.end()
        await _started(here)
        await master.until("acknowledged")
        leaves = []
        for number in range(max(5, rounds // 10)):
            agent = await here.daemon(f"b{number}", host="127.0.0.12")
            await _started(here)
            await master.until("acknowledged")
            begun = await agent.end()
            leaves.append(await _started(here) - begun)
            await master.until("acknowledged")
        await master.end()
    spawn = await _spawns(rounds)
    watch = await _puts_to_watch(rounds)
    limit = f"spawn {milliseconds(spawn)}; put to watch {milliseconds(watch)}"
    least = statistics.median(spawn) + statistics.median(watch)
    return [
        Row(
            "payload change to callback start",
            milliseconds(changes),
            limit,
            f"{statistics.median(changes) / least:.1f} x spawn + watch",
            "1.15 s (0.56-1.59)",
        ),
        Row(
            "graceful leave to callback start",
            milliseconds(leaves),
            "",
            f"{statistics.median(leaves) / least:.1f} x spawn + watch",
            "5.5 s",
        ),
        Row(
            "resident memory, agent",
            f"{memory[0]:.1f} MB",
            f"{_bare()} MB with asyncio, pyzmq, msgpack",
            f"{memory[0] / float(_bare()):.2f}",
            "38 MB",
        ),
        Row("resident memory, master", f"{memory[1]:.1f} MB", "", "", "38 MB"),
    ]


async def fail_over(rounds: int) -> list[Row]:
    """From SIGTERM of the leader to the next leader."""
    async with stage() as here:
        hosts = ["127.0.0.1", "127.0.0.2"]
        leader = await here.daemon("m0", host=hosts[0], KONTROL_MODE="master")
        await leader.until("leader, in term")
        taken = []
        for number in range(1, rounds + 1):
            standby = await here.daemon(f"m{number}", host=hosts[number % 2], KONTROL_MODE="master")
            await standby.until("candidate, behind")
            begun = time.monotonic()
            leader.process.send_signal(signal.SIGTERM)
            taken.append(await standby.until("leader, in term") - begun)
            await leader.process.wait()
            leader = standby
        await leader.end()
    return [
        Row(
            "leader SIGTERM to next leader",
            milliseconds(taken),
            "etcdctl lock 12 ms (elsewhere)",
            "",
            "2.0 s (1.1-3.6)",
        )
    ]


async def keepalives() -> list[Row]:
    """Acknowledged keepalives per second, from processes of their own, one master."""
    async with stage() as here:
        master = await here.daemon("m1", KONTROL_MODE="master", KONTROL_DAMPER="60")
        await master.until("leader, in term")
        loaders = [
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "bench.control_loop",
                "load",
                str(here.port),
                str(number),
                stdout=subprocess.PIPE,
            )
            for number in range(_LOADERS)
        ]
        outputs = await asyncio.gather(*(loader.communicate() for loader in loaders))
        memory = master.resident()
        await master.end()
        refreshes = await _refreshes(here.etcd)
    counts = [json.loads(out) for out, _ in outputs]
    rate = sum(count["acknowledged"] / count["seconds"] for count in counts)
    times = [t for count in counts for t in count["times"]]
    return [
        Row(
            "acknowledged keepalives per second",
            f"{rate:.0f}/s",
            f"lease refreshes, this client: {refreshes:.0f}/s",
            f"{rate / refreshes:.2f}",
            "308/s",
        ),
        Row("   new pods per second", f"{sum(count['joined'] for count in counts):.0f}/s"),
        Row("   time to the acknowledgement, full load", milliseconds(times)),
        Row(f"   resident memory, master of {_LOADERS * _PODS_EACH} pods", f"{memory:.1f} MB"),
    ]


async def _load(port: int, number: int) -> None:
    """Send keepalives as fast as they are acknowledged; prints the result."""
    records = [
        Keepalive(
            app="bench",
            id=f"l{number}-{pod}",
            ip=f"10.{number}.{pod // 250}.{pod % 250}",
            key="x",
            role="bench",
            nonce="a" * 24,
            n=0,
        ).encode()
        for pod in range(_PODS_EACH)
    ]
    times: list[float] = []
    async with Client("127.0.0.1", port) as client:
        begun = time.monotonic()
        for first in range(0, _PODS_EACH, _PARALLEL):
            some = records[first : first + _PARALLEL]
            await asyncio.gather(*(client.call("ping", record, timeout=30) for record in some))
        joined = _PODS_EACH / (time.monotonic() - begun)
        begun = time.monotonic()
        end = begun + _LOAD_SECONDS
        acknowledged = 0

        async def one(first: int) -> None:
            nonlocal acknowledged
            turn = first
            while (sent := time.monotonic()) < end:
                try:
                    await client.call("ping", records[turn % _PODS_EACH], timeout=30)
                except RpcError as error:
                    print(error, file=sys.stderr)
                    continue
                acknowledged += 1
                times.append(time.monotonic() - sent)
                turn += _PARALLEL

        async with asyncio.TaskGroup() as group:
            for first in range(_PARALLEL):
                group.create_task(one(first))
        seconds = time.monotonic() - begun
    print(
        json.dumps(
            {
                "acknowledged": acknowledged,
                "seconds": seconds,
                "times": times[::10],
                "joined": joined,
            }
        )
    )


async def _refreshes(etcd: str) -> float:
    """Lease refreshes per second that the client gets from this etcd, 64 at a time."""
    async with EtcdStore(EtcdConfig(tuple(etcd.split(",")))) as store:
        leases = [(await store.grant(60)).id for _ in range(64)]
        begun = time.monotonic()
        done = 0

        async def one(lease: int) -> None:
            nonlocal done
            while time.monotonic() < begun + 3:
                await store.refresh(lease)
                done += 1

        await asyncio.gather(*(one(lease) for lease in leases))
        return done / (time.monotonic() - begun)


async def _spawns(rounds: int) -> list[float]:
    """Time from starting a shell to its first line."""
    times = []
    for _ in range(rounds):
        begun = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", "echo", stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        await process.stdout.readline()
        times.append(time.monotonic() - begun)
        await process.wait()
    return times


async def _puts_to_watch(rounds: int) -> list[float]:
    """Time from a put to the watch's event, on an etcd of its own that syncs its disk."""
    async with embedded_etcd() as endpoints, EtcdStore(EtcdConfig(tuple(endpoints))) as store:
        header = (await store.txn([], [Put("bench", b"")])).header
        times = []
        async with store.watch("bench", start=header.revision + 1) as watch:
            events = aiter(watch)
            for _ in range(rounds):
                begun = time.monotonic()
                await store.txn([], [Put("bench", b"x")])
                while not (await anext(events)).events:
                    pass
                times.append(time.monotonic() - begun)
        return times


def _bare() -> str:
    """MB resident of an interpreter with what an agent needs at least."""
    code = (
        "import asyncio, zmq, msgpack\n"
        "print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmRSS')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return f"{int(out.stdout) / 1024:.1f}"


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def run(rounds: int = 100) -> None:
    """Measure everything and print the table."""
    rows = await change_and_leave(rounds)
    rows += await fail_over(max(5, rounds // 10))
    rows += await keepalives()
    show("The control loop, one master, etcd with fsync, on loopback", rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["load"]:
        asyncio.run(_load(int(sys.argv[2]), int(sys.argv[3])))
    else:
        asyncio.run(run(*(int(word) for word in sys.argv[1:2])))
