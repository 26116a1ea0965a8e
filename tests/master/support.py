"""Masters on the store model and virtual time, with a callback that the test plays."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.memory.client import Network

from kontrol.ensemble.pod import Keepalive
from kontrol.master.callback import RunOutcome, RunRequest
from kontrol.master.master import Master, MasterConfig
from kontrol.master.records.keys import Keys

CONFIG = MasterConfig(
    namespace="ns",
    app="app",
    id="m1",
    address="10.1.0.1",
    ttl=9.0,
    fover=6.0,
    damper=1.0,
    damper_max=5.0,
)
KEYS = Keys.of("ns", "app")

GOOD = RunOutcome(
    ok=True,
    state=None,
    why="exit status 0",
    status=0,
    signal=None,
    stderr_tail="",
    seconds=0.1,
    fenced=False,
)
BAD = replace(GOOD, ok=False, why="exit status 3", status=3)


@dataclass
class Ran:
    """One run as the callback saw it; `ended` is set to how it ended."""

    at: float
    request: RunRequest
    ended: str = ""

    @property
    def ids(self) -> list[str]:
        return [pod["id"] for pod in json.loads(self.request.pods)]

    @property
    def changes(self) -> dict[str, list[str]]:
        """The ids of each kind of change that there was of pods."""
        found: dict[str, list[dict[str, Any]]] = json.loads(self.request.changes)
        found.pop("spec", None)
        return {kind: [pod["id"] for pod in pods] for kind, pods in found.items() if pods}


@dataclass
class Stub:
    """A callback that takes `seconds` and ends as `outcome` says; all masters may share `runs`."""

    runs: list[Ran] = field(default_factory=list)
    seconds: float = 0.1
    outcome: Callable[[RunRequest], RunOutcome] = lambda _: GOOD
    name: str = "f1"

    def __post_init__(self) -> None:
        self._stop = asyncio.Event()
        self._replaced = asyncio.Event()

    def fingerprint(self) -> str:
        self._replaced.clear()
        return self.name

    def replace(self, name: str) -> None:
        self.name = name
        self._replaced.set()

    async def changed(self) -> None:
        await self._replaced.wait()

    async def run(self, request: RunRequest, deadline: float) -> RunOutcome:
        ran = Ran(asyncio.get_running_loop().time(), request)
        self.runs.append(ran)
        self._stop.clear()
        try:
            async with asyncio.timeout(self.seconds):
                await self._stop.wait()
        except TimeoutError:
            outcome = self.outcome(request)
            ran.ended = outcome.why
            return outcome
        except asyncio.CancelledError:
            ran.ended = "killed"
            raise
        ran.ended = "stopped"
        return replace(BAD, why="stopped")

    def extend(self, deadline: float) -> None:
        pass

    async def stop(self) -> None:
        self._stop.set()


@asynccontextmanager
async def running(
    cluster: MemoryCluster,
    callback: Stub | None = None,
    *,
    network: Network | None = None,
    wall: Callable[[], str] = lambda: "2026-01-01T00:00:00.000+00:00",
    begun: Callable[[Master], Awaitable[object]] = Master.answerable,
    **changes: Any,  # noqa: ANN401 - any field of the configuration
) -> AsyncIterator[Master]:
    """A master that runs meanwhile, by the wall clock `wall`, once it has `begun`."""
    async with asyncio.TaskGroup() as group:
        loop = asyncio.get_running_loop()
        master = Master(
            MemoryStore(cluster, network),
            replace(CONFIG, **changes),
            runner=callback,
            boot_clock=loop.time,
            wall=wall,
            rng=random.Random(1),
        )
        task = group.create_task(master.run())
        await begun(master)
        yield master
        task.cancel()


def nonce(name: str) -> str:
    """A nonce as agents make it; those of several names are in the order of the names."""
    return name.encode().hex().ljust(24, "0")


def record(number: int, **changes: Any) -> str:  # noqa: ANN401 - any field of the record
    """The keepalive of pod `number`; its nonce is made of a name."""
    fields: dict[str, Any] = {
        "app": "app",
        "id": f"p{number}",
        "ip": f"10.0.0.{number}",
        "key": "x",
        "role": "r",
        "nonce": "a",
        "n": 0,
        **changes,
    }
    fields["nonce"] = fields["nonce"] and nonce(fields["nonce"])
    return Keepalive(**fields).encode()


@asynccontextmanager
async def alive(master: Master, *numbers: int) -> AsyncIterator[None]:
    """Pods that keep reporting to `master` meanwhile; they have joined when the block begins."""

    async def report(number: int) -> None:
        while True:
            await asyncio.sleep(CONFIG.ttl / 3)
            await master.ping(record(number))

    for number in numbers:
        await master.ping(record(number))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(report(number)) for number in numbers]
        yield
        for task in tasks:
            task.cancel()
