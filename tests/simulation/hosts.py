"""What runs on the hosts: the real agent, the real master, and a model of the callback's process.

A host's process is a node of the loop, a new one after each restart. The callback's process and
its guard are no part of the master's: they live in the world's own context, so that a paused
master's guard kills on time, and a crashed one's at once.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.simulation.history import Ended, Entry, Failure, Process, Started
from tests.simulation.network import Network, StoreNetwork, Wire
from tests.simulation.schedule import Schedule
from tests.support.simloop import SimLoop

from kontrol.agent.agent import Agent, AgentSettings
from kontrol.ensemble.pod import Keepalive, key_of
from kontrol.ensemble.tiers import Tier
from kontrol.master.callback import RunOutcome, RunRequest
from kontrol.master.master import Master, MasterConfig
from kontrol.rpc.errors import Refused, RemoteError
from kontrol.store.memory import MemoryCluster, MemoryStore

GRACE = 30.0  # seconds for a master to end, as Kubernetes gives by default


@dataclass
class World:
    """What all hosts share."""

    loop: SimLoop
    schedule: Schedule
    network: Network
    cluster: MemoryCluster
    record: Callable[[Entry], None]
    rng: Random
    masters: "dict[str, MasterHost]"
    failing: int = 0  # how many reasons there are for callbacks to fail, or to be slow
    slow: int = 0


@dataclass
class Child:
    """A callback's process, as seen by its guard. `deadline` in loop time."""

    run: int
    deadline: float
    outcome: "asyncio.Future[RunOutcome]"
    end: asyncio.TimerHandle | None = None
    guard: asyncio.TimerHandle | None = None


class SimRunner:
    """The callback of one master's process; implements `kontrol.master.execution.Runner`."""

    def __init__(self, world: World, host: str, clock: "BootClock", fingerprint: str) -> None:
        self._world = world
        self._host = host
        self._clock = clock
        self._fingerprint = fingerprint
        self._child: Child | None = None

    def fingerprint(self) -> str:
        """Return what tells this callback from another."""
        return self._fingerprint

    async def run(self, request: RunRequest, deadline: float) -> RunOutcome:
        """Run it, or have it killed at the deadline or on cancellation."""
        loop = self._world.loop
        child = Child(request.run, self._clock.loop_time(deadline), loop.create_future())
        self._child = child
        delay = self._world.rng.uniform(0.001, 0.05)
        child.end = self._later(delay, lambda: self._start(child, request))
        try:
            return await asyncio.shield(child.outcome)
        except asyncio.CancelledError:
            self._finish(child, ok=False, why="cancelled")
            raise

    def extend(self, deadline: float) -> None:
        """Move the deadline of the run under way."""
        child = self._child
        if child is not None and not child.outcome.done():
            child.deadline = max(child.deadline, self._clock.loop_time(deadline))
            self._watch(child)

    async def stop(self) -> None:
        """Ask it to end; it takes up to 5 s."""
        child = self._child
        if child is not None and not child.outcome.done():
            delay = self._world.rng.choice((0.01, 0.5, 5.0))
            self._later(delay, lambda: self._finish(child, ok=False, why="stopped"))
            await asyncio.wait([child.outcome])

    def kill(self) -> None:
        """What the guard does when its master is gone."""
        child = self._child
        if child is not None:
            self._later(0.01, lambda: self._finish(child, ok=False, why="its master is gone"))

    def _later(self, delay: float, what: Callable[[], None]) -> asyncio.TimerHandle:
        loop = self._world.loop
        return loop.call_later(delay, what, context=loop.context(""))

    def _start(self, child: Child, request: RunRequest) -> None:
        world, rng = self._world, self._world.rng
        if child.outcome.done():
            return
        if child.deadline <= world.loop.time():
            child.outcome.set_result(_outcome(ok=False, why="fenced before it started"))
            return
        world.record(
            Started(
                world.loop.time(), self._host, request.run, request.term, request.digest,
                request.pods, request.changes, request.state,
            )
        )  # fmt: skip
        child.guard = None
        self._watch(child)
        fover = world.schedule.fover
        length = rng.choice((0.05, 0.5, fover / 2)) if not world.slow else rng.uniform(1, 4) * fover
        ok = not world.failing
        state = json.dumps({"run": request.run}).encode() if rng.random() < 0.7 else None
        child.end = self._later(length, lambda: self._finish(child, ok=ok, state=state))

    def _watch(self, child: Child) -> None:
        """Set the guard's timer, once the process runs."""
        if child.guard is not None:
            child.guard.cancel()
        left = max(0.0, child.deadline - self._world.loop.time())
        child.guard = self._later(left, lambda: self._finish(child, ok=False, why="fenced"))

    def _finish(self, child: Child, *, ok: bool, state: bytes | None = None, why: str = "") -> None:
        if child.outcome.done():
            return
        for timer in (child.end, child.guard):
            if timer is not None:
                timer.cancel()
        self._world.record(Ended(self._world.loop.time(), child.run, ok, state if ok else None))
        child.outcome.set_result(_outcome(ok=ok, state=state, why=why or "as the schedule has it"))


def _outcome(*, ok: bool, state: bytes | None = None, why: str = "") -> RunOutcome:
    return RunOutcome(
        ok=ok, state=state if ok else None, why=why, status=0 if ok else 1, signal=None,
        stderr_tail="", seconds=0.0, fenced=why == "fenced",
    )  # fmt: skip


class BootClock:
    """A host's clock: another zero, and up to 5 percent fast or slow."""

    def __init__(self, loop: SimLoop, rng: Random) -> None:
        self._loop = loop
        self._rate = rng.uniform(0.95, 1.05)
        self._offset = rng.uniform(0, 1e6)

    def __call__(self) -> float:
        return self._offset + self._rate * self._loop.time()

    def loop_time(self, reading: float) -> float:
        """Return when this clock shows `reading`."""
        return (reading - self._offset) / self._rate


class MasterHost:
    """A host on which a master runs, or not."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.fingerprint = "callback 1"
        self._world = world
        self._starts = 0
        self._clock = BootClock(world.loop, world.rng)
        self._node = ""
        self._master: Master | None = None
        self._runner: SimRunner | None = None
        self._task: asyncio.Task[None] | None = None
        self._requests: set[asyncio.Task[None]] = set()

    @property
    def node(self) -> str:
        """The node of its process, empty if there is none."""
        return self._node

    def start(self) -> None:
        """Start the process, unless it runs."""
        if self._node:
            return
        world, schedule = self._world, self._world.schedule
        self._starts += 1
        self._node = f"{self.name}#{self._starts}"
        self._runner = SimRunner(world, self.name, self._clock, self.fingerprint)
        store = MemoryStore(world.cluster, StoreNetwork(world.network, self.name))
        config = MasterConfig(
            "default", "test", self.name, self.name, ttl=schedule.ttl, fover=schedule.fover,
            damper=schedule.damper, damper_max=6 * schedule.damper,
        )  # fmt: skip
        self._master = Master(
            store,
            config,
            runner=self._runner,
            boot_clock=self._clock,
            wall=lambda: "2026-01-01T00:00:00Z",
            rng=Random(f"{schedule.seed} {self._node}"),
        )
        world.record(Process(world.loop.time(), self.name, up=True))
        self._task = world.loop.spawn(self._node, self._run(self._master, store))

    async def _run(self, master: Master, store: MemoryStore) -> None:
        try:
            await master.run()
        except asyncio.CancelledError:
            await store.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is to be complained of
            self._failed(f"died: {error!r}")

    def _failed(self, why: str) -> None:
        self._world.record(Failure(self._world.loop.time(), self.name, why))

    def crash(self) -> None:
        """SIGKILL."""
        if self._node:
            self._world.loop.crash(self._node)
            self._gone()
            assert self._runner is not None
            self._runner.kill()

    async def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        task, node = self._task, self._node
        if not node or task is None:
            return
        loop = self._world.loop
        self._gone()
        loop.call_soon(task.cancel, context=loop.context(node))
        await asyncio.wait([task], timeout=GRACE)
        if not task.done() and not loop.paused(node):
            await asyncio.wait([task], timeout=GRACE)
            if not task.done() and not loop.paused(node):
                self._failed(f"did not end within {2 * GRACE} s of SIGTERM")
        loop.crash(node)  # as a supervisor does in the end
        assert self._runner is not None
        self._runner.kill()

    def _gone(self) -> None:
        self._node, self._master = "", None
        self._world.record(Process(self._world.loop.time(), self.name, up=False))

    def receive(self, raw: str, reply: Callable[[object], None]) -> None:
        """Take a keepalive as a task of the process, if there is one."""
        if self._master is not None:
            loop = self._world.loop
            loop.call_soon(self._serve, self._master, raw, reply, context=loop.context(self._node))

    def _serve(self, master: Master, raw: str, reply: Callable[[object], None]) -> None:
        async def serve() -> None:
            try:
                reply(await master.ping(raw))
            except Refused as error:
                reply(RemoteError(error.name, error.message))
            except Exception as error:  # noqa: BLE001 - as above
                self._failed(f"a keepalive raised {error!r}")

        request = asyncio.get_running_loop().create_task(serve())
        self._requests.add(request)
        request.add_done_callback(self._requests.discard)


class AgentHost:
    """A host on which an agent runs, or not."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.payload = 0
        self._world = world
        self._address = 1
        self._starts = 0
        self._node = ""
        self._agent: Agent | None = None
        self._wire = Wire(world.network, name, world.masters, world.record)

    @property
    def node(self) -> str:
        """The node of its process, empty if there is none."""
        return self._node

    @property
    def ip(self) -> str:
        """Its address, which moves may change."""
        return f"10.0.{self._address}.{self.name[1:]}"

    @property
    def alive(self) -> tuple[str, str, str] | None:
        """Its id, key and payload, if it reports."""
        return (self.name, key_of(self.ip), json.dumps(self.payload)) if self._node else None

    def start(self) -> None:
        """Start the process, unless it runs."""
        if self._node:
            return
        world = self._world
        self._starts += 1
        self._node = f"{self.name}#{self._starts}"
        identity = Keepalive(
            app="test", id=self.name, ip=self.ip, key=key_of(self.ip), role="test"
        )  # fmt: skip
        settings = AgentSettings(identity, (Tier("masters", 8000),), ttl=world.schedule.ttl)
        agent = self._agent = Agent(
            settings,
            connect=self._wire.connect,
            resolve=self._wire.resolve,
            random=Random(f"{world.schedule.seed} {self._node}"),
            clock=lambda: int(world.loop.time() * 1e9),
        )
        agent.update(self.payload)
        world.record(Process(world.loop.time(), self.name, up=True))
        self._task = world.loop.spawn(self._node, agent.run())

    def change(self) -> None:
        """Change the payload."""
        self.payload += 1
        if self._agent is not None and self._node:
            loop = self._world.loop
            loop.call_soon(self._agent.update, self.payload, context=loop.context(self._node))

    def crash(self) -> None:
        """SIGKILL."""
        if self._node:
            self._world.loop.crash(self._node)
            self._gone()

    async def leave(self) -> None:
        """SIGTERM: say farewell, and end."""
        agent, node = self._agent, self._node
        if agent is None or not node:
            return
        self._gone()
        leaving = self._world.loop.spawn(node, agent.leave())
        await asyncio.wait([leaving, self._task], timeout=10)
        self._world.loop.crash(node)

    def move(self) -> None:
        """Get another address; to be called while it does not run."""
        self._address += 1

    def _gone(self) -> None:
        self._node, self._agent = "", None
        self._world.record(Process(self._world.loop.time(), self.name, up=False))
