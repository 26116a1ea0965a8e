"""Runs one schedule: builds the world, breaks it, repairs it, and waits until all is quiet."""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

from tests.simulation.checker import check
from tests.simulation.checks.runs import behind
from tests.simulation.history import (
    KEYS,
    STORE,
    Commit,
    Elected,
    Entry,
    Garbage,
    History,
    Leased,
    Restore,
    Settled,
    StoreView,
)
from tests.simulation.hosts import AgentHost, MasterHost
from tests.simulation.network import Network
from tests.simulation.schedule import Schedule, Step
from tests.simulation.versions import EARLIER, LATER
from tests.simulation.world import World
from tests.support.memory import MemoryCluster, Txn
from tests.support.memory.core import Core, Snapshot
from tests.support.simloop import SimLoop, run

from kontrol.ensemble.desired import Expected
from kontrol.store.protocol import Delete, Event, Lease, NoSpace, Put, Range

CATCH_UP = 900.0  # seconds of quiet in which the tier must have caught up; backoff takes 300
FOLLOW = 120.0  # seconds in which pods have what is published, after a restore too
RAISE = 1_000_000_000  # revisions, as the documentation of etcdutl has it


class _RecordingCore(Core):
    """The store's data, with a witness of every lease."""

    def __init__(self, cluster: "RecordingCluster") -> None:
        super().__init__(1, cluster.publish)
        self._record = cluster.record

    def grant(self, ttl: int, now: float) -> Lease:
        lease = super().grant(ttl, now)
        self._record(Leased(now, lease.id, lease.ttl))
        return lease

    def refresh(self, lease: int, now: float) -> int:
        ttl = super().refresh(lease, now)
        if ttl > 0:
            self._record(Leased(now, lease, ttl))
        return ttl


class RecordingCluster(MemoryCluster):
    """The store's model, with a witness of every commit, restore and election."""

    def __init__(self, loop: SimLoop, record: Callable[[Entry], None]) -> None:
        self._loop = loop
        self.record = record
        super().__init__()
        self.core = _RecordingCore(self)

    def publish(self, events: tuple[Event, ...]) -> None:
        """Tell the history, then the watches."""
        self.record(Commit(self._loop.world, events[0].kv.mod_revision, events))
        super().publish(events)

    def change_leader(self) -> None:
        """Tell the history, too."""
        super().change_leader()
        self.record(Elected(self._loop.world))

    def go_back(self, kind: str, snapshot: Snapshot) -> None:
        """Restore in one of the ways of `RESTORES`."""
        other = 0 if kind in ("lower", "marked") else self.core.cluster + 1
        bump = 0
        if kind in ("raised", "marked"):
            bump = self.core.revision - snapshot.revision + RAISE
        self.restore(snapshot, other, bump=bump, mark_compacted=kind == "marked")
        kvs = self.core.range(Range("", prefix=True)).kvs
        self.record(Restore(self._loop.world, kind, self.core.revision, kvs))


def simulate(schedule: Schedule) -> History:
    """Run `schedule` and return what happened."""
    history: list[Entry] = []
    run(_Simulation(schedule, history).run(), seed=schedule.seed)
    return tuple(history)


def judge(schedule: Schedule) -> list[str]:
    """Run `schedule` and return the complaints."""
    return check(simulate(schedule))


def _value(text: str) -> bytes | None:
    return None if text == "-" else text.encode()


class _Simulation:
    def __init__(self, schedule: Schedule, history: list[Entry]) -> None:
        self._schedule = schedule
        self._history = history
        self._book = StoreView()
        self._masters: dict[str, MasterHost] = {}
        self._pauses: Counter[str] = Counter()
        self._full = 0  # how many reasons there are for the store to be full
        self._snapshot: Snapshot | None = None

    def _record(self, entry: Entry) -> None:
        self._history.append(entry)
        self._book.apply(entry)

    async def run(self) -> None:
        schedule = self._schedule
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        rng, more = (Random(f"{name} {schedule.seed}") for name in ("world", "more"))
        network = Network(loop, self._record, rng, more)
        masters = self._masters
        self._cluster = cluster = RecordingCluster(loop, self._record)
        self._world = World(loop, schedule, network, cluster, self._record, rng, masters)
        for i in range(1, schedule.masters + 1):
            name = f"m{i}"
            settings = schedule.own.get(name, schedule.settings)
            masters[name] = MasterHost(self._world, name, settings)
        self._agents = {
            f"p{i}": AgentHost(self._world, f"p{i}") for i in range(1, schedule.pods + 1)
        }
        start = loop.time()
        async with asyncio.TaskGroup() as group:
            for step in schedule.steps:
                group.create_task(self._later(start + step.at, step))
            await asyncio.sleep(schedule.horizon * schedule.ttl)
        for master in masters.values():
            master.start()
        self._world.settling = True
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
        callbacks = {master.callback for master in self._masters.values()}
        same = callbacks.pop() if len(callbacks) == 1 else ""
        limit = loop.time() + CATCH_UP
        while loop.time() < limit:
            await asyncio.sleep(2.0)
            if not any(behind(self._book, Settled(loop.time(), alive, same))):
                break
        ttl = max(master.settings.ttl for master in self._masters.values())
        follow = FOLLOW if self._schedule.publishes else 0.0
        await asyncio.sleep(max(3 * max(ttl, self._schedule.ttl), follow))
        limit = loop.time() + CATCH_UP
        while self._book.running is not None and loop.time() < limit:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.1)  # one that comes every so often may be under way
        followers = tuple(name for name, agent in self._agents.items() if agent.follows)
        self._record(Settled(loop.time(), alive, same, followers))

    async def _do(self, step: Step) -> None:
        world, network = self._world, self._world.network
        a, b, lasting = step.who, step.detail, step.lasting
        everyone = (*self._masters, *self._agents, STORE)
        match step.do:
            case "start":
                self._host(a).start()
            case "crash" | "stop" | "restart" | "leave" | "deploy" | "move" | "set" | "upgrade":
                await self._down(step)
            case "reuse" | "twin" | "double":
                await self._wear(step)
            case "pause":
                await self._pause(a, lasting)
            case "cut" | "lossy" | "stall" | "mute" | "lag" | "distant" | "denied":
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
            case "snapshot":
                self._snapshot = world.cluster.snapshot()
            case "restore":
                await self._restore(a, lasting)
            case "full":
                await self._fill(lasting)
            case "garbage":
                await self._garble(KEYS.root + a, b.encode(), lasting)
            case "replace":
                self._masters[a].replace(b)
            case "payload":
                self._agents[a].change()
            case "ask":
                applied = self._book.applied
                number = max(1, applied["run"] - int(step.at) % 3) if applied else 1
                assert b in ("run", "release", "rollback")
                self._masters[a].ask(b, number)  # type: ignore[arg-type]  # as just asserted
            case "want":
                self._want(a, b)
            case "no facts":
                self._agents[a].mute += 1
                await asyncio.sleep(lasting)
                self._agents[a].mute -= 1
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

    def _want(self, name: str, text: str) -> None:
        """Have a master set a key (`a 1`) or unset it (`a -`), perhaps if it has a value."""
        key, value, *condition = text.split()
        expected = Expected(_value(condition[1])) if condition else None
        self._masters[name].want(key, _value(value), expected)

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
            elif step.do == "set":
                changes = (part.split("=") for part in step.detail.split())
                numbers: dict[str, Any] = {name: float(value) for name, value in changes}
                host.settings = replace(host.settings, **numbers)
            elif step.do == "upgrade":
                host.version = LATER if step.detail == "later" else EARLIER
        else:
            if step.do == "leave":
                await host.leave()
            else:
                host.crash()
            if step.do == "move":
                host.move()
        self._forget_pauses(step.who, node)
        if isinstance(host, AgentHost) and not step.lasting:
            return  # forever
        await asyncio.sleep(step.lasting)
        host.start()

    async def _wear(self, step: Step) -> None:
        """Let a host report as another one, or at another's address, for a while."""
        host, other = self._agents[step.who], self._agents[step.detail]
        name = other.name if step.do in ("twin", "double") else ""
        ip = other.ip if step.do in ("reuse", "double") else ""
        for worn in ((name, ip), ("", "")):
            node = host.node
            host.crash()
            self._forget_pauses(step.who, node)
            host.wear(*worn)
            host.start()
            if any(worn):
                await asyncio.sleep(step.lasting)

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

    def _forget_pauses(self, name: str, node: str) -> None:
        """Let the pauses of a process that is gone end in nothing."""
        if self._pauses[node] > 0:
            self._unpause(name, node)
            self._pauses[node] = -1_000_000

    def _unpause(self, name: str, node: str) -> None:
        del self._pauses[node]
        self._world.loop.resume(node)
        self._world.network.fault("paused", name, on=False)

    async def _restore(self, kind: str, lasting: float) -> None:
        """Take the store down, and bring it up again as the last snapshot has it."""
        cluster, network = self._cluster, self._world.network
        snapshot = self._snapshot
        if snapshot is None:
            return
        cluster.halt()
        network.fault("paused", STORE, on=True)
        await asyncio.sleep(lasting)
        network.renew()
        cluster.go_back(kind, snapshot)
        network.fault("paused", STORE, on=False)
        if not network.down(STORE):
            cluster.change_leader()

    async def _fill(self, lasting: float) -> None:
        """Let the next write cross the store's quota, and make room again later."""
        core, network = self._cluster.core, self._world.network
        self._full += 1
        core.crossing = core.crossing or not core.full
        network.fault("full", STORE, on=True)
        await asyncio.sleep(lasting)
        network.fault("full", STORE, on=False)
        self._full -= 1
        if not self._full:
            core.crossing = core.full = False

    async def _garble(self, key: str, value: bytes, lasting: float) -> None:
        """Put at a key what is no record, as an operator, and delete it later."""
        cluster = self._cluster
        for op in (Put(key, value), Delete(key)):
            if not self._world.network.down(STORE):
                with suppress(NoSpace):
                    cluster.core.txn(Txn((), (op,)))
                self._record(Garbage(self._world.loop.world, key))
            await asyncio.sleep(lasting)

    async def _while(self, faults: list[tuple[str, str, str]], lasting: float) -> None:
        network = self._world.network
        for fault in faults:
            network.fault(*fault, on=True)
        await asyncio.sleep(lasting)
        for fault in faults:
            network.fault(*fault, on=False)
