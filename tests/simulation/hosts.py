"""What runs on the hosts: the real agent and the real master, each a node of the loop.

A restart is a new node.
"""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.simulation.callback import BootClock, SimRunner
from tests.simulation.history import Answered, Asked, Failure, Process, Replaced, Settings, Wanted
from tests.simulation.network import StoreNetwork, Wire
from tests.simulation.published import Disk, SimFile, SimPublisher
from tests.simulation.schedule import FOURTH, THIRD
from tests.simulation.silence import SimHooks
from tests.simulation.versions import EARLIER, LATER, OtherVersion, earlier, later
from tests.simulation.wire import answer
from tests.simulation.world import World
from tests.support.memory import MemoryStore
from tests.support.simloop import Clock

from kontrol.agent.agent import Agent, AgentSettings
from kontrol.agent.live import LiveFile
from kontrol.agent.silence import SilenceHooks
from kontrol.ensemble.canonical import JSON, canonical
from kontrol.ensemble.desired import Expected
from kontrol.ensemble.pod import Keepalive, key_of
from kontrol.ensemble.tiers import Tier
from kontrol.ensemble.urgent import Urgent, parse_urgent
from kontrol.master.desired import NotAsExpected
from kontrol.master.leader.requests import Kind
from kontrol.master.master import Master, MasterConfig
from kontrol.rpc.errors import Refused, RemoteError
from kontrol.store.protocol import Ambiguous, NoSpace, Store, StoreError

GRACE = 30.0  # seconds for a master to end, as Kubernetes gives by default


class MasterHost:
    """A host on which a master runs, or not."""

    def __init__(self, world: World, name: str, settings: Settings) -> None:
        self.name = name
        self.settings = settings  # of the next start
        self.fingerprint = "callback 1"
        self.version = 0
        self._world = world
        self._starts = 0
        drawn = Clock(world.rng.uniform(0.95, 1.05), world.rng.uniform(0, 1e6))
        # The daemon's loop is on the boot clock; in the first schedules loops had the world's time.
        self._clock = BootClock(world.loop, world.clock(name) if world.schedule.skewed else drawn)
        self._node = ""
        self._master: Master | None = None
        self._runner: SimRunner | None = None
        self._task: asyncio.Task[None] | None = None
        self._requests: set[asyncio.Task[None]] = set()

    @property
    def node(self) -> str:
        """The node of its process, empty if there is none."""
        return self._node

    @property
    def callback(self) -> str:
        """The fingerprint of the callback that its process has."""
        return self._runner.current if self._runner else ""

    def start(self) -> None:
        """Start the process, unless it runs."""
        if self._node:
            return
        world, settings = self._world, self.settings
        self._starts += 1
        self._node = world.boot(self.name, self._starts)
        asks = self.version != EARLIER
        self._runner = SimRunner(
            world, self.name, self._clock, self.fingerprint, asks=asks,
            publisher=SimPublisher(world, self.name, self._node) if asks else None,
        )  # fmt: skip
        store = self._store()
        config = MasterConfig(
            "default", "test", self.name, self.name, ttl=settings.ttl, fover=settings.fover,
            damper=settings.damper, damper_max=settings.ceiling, brake=settings.brake,
            sweep_every=settings.sweep, sweep_age=settings.age, every=settings.every or None,
            urgent=parse_urgent(settings.urgent) if settings.urgent else Urgent(),
        )  # fmt: skip
        self._master = Master(
            store,
            config,
            runner=self._runner,
            boot_clock=self._clock,
            wall=world.date,
            rng=Random(f"{world.schedule.seed} {self._node}"),
        )
        world.record(Process(world.loop.world, self.name, up=True, settings=settings))
        self._task = world.loop.spawn(self._node, self._run(self._master, store))

    def _store(self) -> Store:
        world = self._world
        network = StoreNetwork(world.network, self.name, world.record)
        store = MemoryStore(world.cluster, network)
        if self.version == LATER:
            return OtherVersion(store, later)
        return OtherVersion(store, earlier) if self.version == EARLIER else store

    def replace(self, fingerprint: str) -> None:
        """Put another callback in the place of the one there is, under a running master too."""
        self.fingerprint = fingerprint
        if self._runner is not None:
            self._runner.replace(fingerprint)
        self._world.record(Replaced(self._world.loop.world, self.name, fingerprint))

    async def _run(self, master: Master, store: Store) -> None:
        try:
            await master.run()
        except asyncio.CancelledError:
            await store.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is to be complained of
            self._failed(f"died: {error!r}")

    def _failed(self, why: str) -> None:
        self._world.record(Failure(self._world.loop.world, self.name, why))

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
        self._world.record(Process(self._world.loop.world, self.name, up=False))

    def receive(self, frame: bytes, ip: str, reply: Callable[[bytes], None]) -> None:
        """Take a keepalive as a task of the process, if there is one."""
        if self._master is not None:
            loop, context = self._world.loop, self._world.loop.context(self._node)
            loop.call_soon(self._serve, self._master, frame, ip, reply, context=context)

    def follow(
        self, connection: str, have: object, about: object, reply: Callable[[object], None]
    ) -> Callable[[], None] | None:
        """Take a question for what is published; return how to give it up, None if it is down."""
        if self._master is None:
            return None
        loop, master = self._world.loop, self._master

        async def answer() -> None:
            try:
                reply(await master.publications.later(connection, have, about))
            except Refused as error:
                reply(RemoteError(error.name, error.message))

        node = self._node
        task = loop.spawn(node, answer())
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)
        return lambda: None if task.done() else self._cancel(node, task)

    def _cancel(self, node: str, task: "asyncio.Task[None]") -> None:
        loop = self._world.loop
        loop.call_soon(task.cancel, context=loop.context(node))

    def ask(self, kind: Kind, run: int) -> None:
        """Take an operator's request as a task of the process, if there is one."""
        if self._master is None:
            return
        loop = self._world.loop
        self._world.record(Asked(loop.world, self.name, kind))
        asking = loop.spawn(self._node, self._ask(self._master, kind, run))
        self._requests.add(asking)
        asking.add_done_callback(self._requests.discard)

    async def _ask(self, master: Master, kind: Kind, run: int) -> None:
        try:
            await master.requests.ask(kind, "an operator", run=run, timeout=10)
        except StoreError:
            pass
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(f"a request raised {error!r}")

    def want(self, key: str, value: bytes | None, expected: Expected | None) -> None:
        """Take an operator's change of the desired state, if there is a process that knows it."""
        if self._master is None or self.version == EARLIER:
            return
        world = self._world
        world.wanted += 1
        has = None if expected is None else expected.value
        world.record(
            Wanted(world.loop.world, self.name, world.wanted, key, value, expected is not None, has)
        )
        wanting = world.loop.spawn(
            self._node, self._want(self._master, world.wanted, key, value, expected)
        )
        self._requests.add(wanting)
        wanting.add_done_callback(self._requests.discard)

    async def _want(
        self, master: Master, number: int, key: str, value: bytes | None, expected: Expected | None
    ) -> None:
        try:
            made = await master.desired.change(
                key, value, by=f"operator {number}", expected=expected, timeout=10
            )
            result = "made" if made else "same"
        except NotAsExpected:
            result = "other"
        except Ambiguous as error:
            result = "refused" if isinstance(error, NoSpace) else "unknown"
        except StoreError:
            result = "refused"
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(f"a change of the desired state raised {error!r}")
            return
        self._world.record(Answered(self._world.loop.world, number, result))

    def _serve(self, master: Master, frame: bytes, ip: str, reply: Callable[[bytes], None]) -> None:
        async def serve() -> None:
            try:
                takes_live = self.version != EARLIER
                now = self._world.loop.world
                reply(await answer(master, frame, ip, now, takes_live=takes_live))
            except Exception as error:  # noqa: BLE001 - as above
                self._failed(f"a keepalive raised {error!r}")

        request = asyncio.get_running_loop().create_task(serve())
        self._requests.add(request)
        request.add_done_callback(self._requests.discard)


class SimFacts(LiveFile):
    """The file of live facts of a host."""

    def __init__(self, path: Path, host: "AgentHost") -> None:
        super().__init__(path)
        self._host = host

    def read(self, now: float, *, keep: float) -> str:
        """Return what the host says now."""
        del now, keep
        return canonical(self._host.facts()).decode()


class AgentHost:
    """A host on which an agent runs, or not."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self._changes = 0
        self.mute = 0  # how many reasons there are for it to have no live facts
        self._world = world
        self._address = 1
        self._worn = ("", "")
        self._starts = 0
        self._node = ""
        self._agent: Agent | None = None
        deaf = min(max(1.0, world.schedule.ttl / 6), 5.0)  # as `kontrol.daemon.wire_agent` has it
        self._wire = Wire(world.network, name, world.masters, world.record, deaf=deaf)
        self._disk = Disk()

    @property
    def node(self) -> str:
        """The node of its process, empty if there is none."""
        return self._node

    @property
    def id(self) -> str:
        """What it calls itself."""
        return self._worn[0] or self.name

    @property
    def ip(self) -> str:
        """Its address, which moves may change."""
        return self._worn[1] or f"10.0.{self._address}.{self.name[1:]}"

    @property
    def payload(self) -> JSON:
        """Its payload: a number of changes, and from the third generation on a state as well."""
        if self._world.schedule.seed < THIRD:
            return self._changes
        return {"n": self._changes, "state": self._changes // 3}

    @property
    def alive(self) -> tuple[str, str, str] | None:
        """Its id, key and payload, if it reports."""
        return (self.id, key_of(self.ip), json.dumps(self.payload)) if self._node else None

    def wear(self, name: str = "", ip: str = "") -> None:
        """Report under another's id, or at another's address; by default its own again."""
        self._worn = name, ip

    def start(self) -> None:
        """Start the process, unless it runs."""
        if self._node:
            return
        world = self._world
        self._starts += 1
        self._node = world.boot(self.name, self._starts)
        key = key_of(self.ip)
        identity = Keepalive(app="test", id=self.id, ip=self.ip, key=key, role="test")
        tiers, live = (Tier("masters", 8000),), Path("live") if world.schedule.live else None
        settings = AgentSettings(identity, tiers, ttl=world.schedule.ttl, live=live)
        off, hooks = world.walls.get(self._node), self._hooks()
        agent = self._agent = Agent(
            settings,
            connect=self._wire.connect,
            resolve=self._wire.resolve,
            random=Random(f"{world.schedule.seed} {self._node}"),
            clock=lambda: int((world.loop.world if off is None else world.wall(off)) * 1e9),
            hooks=hooks,
            published=self._file(),
        )
        if live is not None:
            agent._live = SimFacts(live, self)
        agent.update(self.payload)
        now, has_hooks = world.loop.world, hooks is not None
        world.record(Process(now, self.name, up=True, id=self.id, key=key, hooks=has_hooks))
        self._task = world.loop.spawn(self._node, agent.run())

    @property
    def follows(self) -> bool:
        """Whether it reports, and keeps what is published."""
        return bool(self._node) and self._world.schedule.publishes

    def _file(self) -> SimFile | None:
        world = self._world
        if not world.schedule.publishes:
            return None
        return SimFile(world, self.name, self._node, "masters:8000", self._disk)

    def _hooks(self) -> SilenceHooks | None:
        world = self._world
        if world.schedule.seed < FOURTH:
            return None
        return SimHooks(world, self.name, self._node).hooks()

    def facts(self) -> JSON:
        """Its live facts now: they differ with each keepalive; None while there are none."""
        return None if self.mute else {"at": self._world.loop.world}

    def change(self) -> None:
        """Change the payload."""
        self._changes += 1
        if self._agent is not None and self._node:
            loop = self._world.loop
            loop.call_soon(self._agent.update, self.payload, context=loop.context(self._node))

    def crash(self) -> None:
        """SIGKILL."""
        if self._node:
            self._world.loop.crash(self._node)
            self._gone()

    async def leave(self) -> None:
        """SIGTERM: deregister, and end."""
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
        self._world.record(Process(self._world.loop.world, self.name, up=False))
