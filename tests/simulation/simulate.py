"""Runs one schedule: builds the world, breaks it, mends it, and waits until all is quiet."""

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random

from tests.simulation.checker import behind, check
from tests.simulation.history import STORE, Book, Commit, Entry, History, Settled
from tests.simulation.hosts import AgentHost, MasterHost
from tests.simulation.network import Network
from tests.simulation.schedule import HORIZON, Schedule, Step
from tests.simulation.world import World
from tests.support.simloop import SimLoop, run

from kontrol.store.memory import MemoryCluster
from kontrol.store.protocol import Event

PATIENCE = 900.0  # seconds of quiet in which the tier must have caught up; backoff takes 300


class RecordingCluster(MemoryCluster):
    """The store's model, with a witness of every commit."""

    def __init__(self, record: Callable[[Entry], None]) -> None:
        super().__init__()
        self._record = record

    def publish(self, events: tuple[Event, ...]) -> None:
        """Tell the history, then the watches."""
        now = asyncio.get_running_loop().time()
        self._record(Commit(now, events[0].kv.mod_revision, events))
        super().publish(events)


def simulate(schedule: Schedule) -> History:
    """Run `schedule` and return what happened."""
    history: list[Entry] = []
    run(_Simulation(schedule, history).run(), seed=schedule.seed)
    return tuple(history)


def judge(schedule: Schedule) -> list[str]:
    """Run `schedule` and return the complaints."""
    return check(simulate(schedule), schedule.ttl)


class _Simulation:
    def __init__(self, schedule: Schedule, history: list[Entry]) -> None:
        self._schedule = schedule
        self._history = history
        self._book = Book()
        self._masters: dict[str, MasterHost] = {}
        self._pauses: Counter[str] = Counter()

    def _record(self, entry: Entry) -> None:
        self._history.append(entry)
        if isinstance(entry, Commit):
            self._book.apply(entry)

    async def run(self) -> None:
        schedule = self._schedule
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        rng = Random(f"world {schedule.seed}")
        network = Network(loop, self._record, rng)
        masters = self._masters
        cluster = RecordingCluster(self._record)
        self._world = World(loop, schedule, network, cluster, self._record, rng, masters)
        for i in range(1, schedule.masters + 1):
            masters[f"m{i}"] = MasterHost(self._world, f"m{i}")
        self._agents = {
            f"p{i}": AgentHost(self._world, f"p{i}") for i in range(1, schedule.pods + 1)
        }
        start = loop.time()
        async with asyncio.TaskGroup() as group:
            for step in schedule.steps:
                group.create_task(self._later(start + step.at, step))
            await asyncio.sleep(HORIZON * schedule.ttl)
        for master in masters.values():
            master.start()
        await self._settle()
        for agent in self._agents.values():
            agent.crash()
        for master in masters.values():
            master.crash()

    async def _later(self, at: float, step: Step) -> None:
        await asyncio.sleep(at - asyncio.get_running_loop().time())
        await self._do(step)

    async def _settle(self) -> None:
        """Wait until the tier has caught up, and for three TTL of nothing more to happen."""
        loop = asyncio.get_running_loop()
        alive = tuple(a.alive for a in self._agents.values() if a.alive is not None)
        limit = loop.time() + PATIENCE
        while loop.time() < limit:
            await asyncio.sleep(2.0)
            if not any(behind(self._book, Settled(loop.time(), alive))):
                break
        await asyncio.sleep(3 * self._schedule.ttl)
        self._record(Settled(loop.time(), alive))

    async def _do(self, step: Step) -> None:
        world, network = self._world, self._world.network
        a, b, lasting = step.who, step.whom, step.lasting
        everyone = (*self._masters, *self._agents, STORE)
        match step.do:
            case "start":
                self._host(a).start()
            case "crash" | "stop" | "restart" | "leave" | "deploy" | "move":
                await self._down(step)
            case "pause":
                await self._pause(a, lasting)
            case "cut" | "lossy" | "stall":
                await self._while([(step.do, a, b)], lasting)
            case "isolate":
                await self._while([("cut", a, other) for other in everyone if other != a], lasting)
            case "storm":
                pairs = [(x, y) for x in self._masters for y in (*self._agents, STORE)]
                await self._while([("lossy", x, y) for x, y in pairs], lasting)
            case "outage":
                world.cluster.halt()
                await self._while([("paused", STORE, "")], lasting)
                if not network.down(STORE):
                    world.cluster.change_leader()
            case "elect":
                if not network.down(STORE):
                    world.cluster.change_leader()
            case "compact":
                if world.cluster.core.compacted < world.cluster.core.revision:
                    world.cluster.compact()
            case "payload":
                self._agents[a].change()
            case "ask":
                applied = self._book.applied
                number = max(1, applied["run"] - int(step.at) % 3) if applied else 1
                assert b in ("run", "release", "rollback")
                self._masters[a].ask(b, number)  # type: ignore[arg-type]  # as just asserted
            case "failing":
                world.failing += 1
                await asyncio.sleep(lasting)
                world.failing -= 1
            case "slow":
                world.slow += 1
                await asyncio.sleep(lasting)
                world.slow -= 1
            case other:
                raise ValueError(f"no such step: {other}")

    def _host(self, name: str) -> MasterHost | AgentHost:
        return self._masters.get(name) or self._agents[name]

    async def _down(self, step: Step) -> None:
        """End a process, and start it again later."""
        host = self._host(step.who)
        node = host.node
        if isinstance(host, MasterHost):
            if step.do == "crash":
                host.crash()
            else:
                await host.stop()
            if step.do == "deploy":
                host.fingerprint = "callback 2"
        else:
            if step.do == "leave":
                await host.leave()
            else:
                host.crash()
            if step.do == "move":
                host.move()
        if self._pauses[node] > 0:
            self._unpause(step.who, node)
            self._pauses[node] = -1_000_000  # its pauses end in nothing
        if isinstance(host, AgentHost) and not step.lasting:
            return  # for ever
        await asyncio.sleep(step.lasting)
        host.start()

    async def _pause(self, name: str, lasting: float) -> None:
        node = self._host(name).node
        if not node:
            return
        self._pauses[node] += 1
        if self._pauses[node] == 1:
            self._world.loop.pause(node)
            self._world.network.fault("paused", name, on=True)
        await asyncio.sleep(lasting)
        self._pauses[node] -= 1
        if self._pauses[node] == 0:
            self._unpause(name, node)

    def _unpause(self, name: str, node: str) -> None:
        del self._pauses[node]
        self._world.loop.resume(node)
        self._world.network.fault("paused", name, on=False)

    async def _while(self, faults: list[tuple[str, str, str]], lasting: float) -> None:
        network = self._world.network
        for fault in faults:
            network.fault(*fault, on=True)
        await asyncio.sleep(lasting)
        for fault in faults:
            network.fault(*fault, on=False)
