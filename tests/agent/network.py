"""Masters and names that fail at will, in place of the network: for tests on virtual time."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from kontrol.agent.agent import Agent, AgentSettings, Hooks
from kontrol.agent.connection import Caller
from kontrol.agent.reporter import TierStatus
from kontrol.ensemble.pod import Keepalive, parse_keepalive
from kontrol.ensemble.tiers import parse_tiers
from kontrol.rpc.errors import LostRemote

IDENTITY = Keepalive(app="test", id="pod-1", ip="10.1.0.1", key="", role="test")
TTL = 24.0
DEAF = TTL / 6  # seconds after which the system gives a connection up
CLOCK = 1_700_000_000_000_000_000


@dataclass
class Master:
    """One address. `answer` is called with each keepalive: it returns, raises, or is SILENT.

    A master that is `stopped` answers what it has received when it is so no more.
    """

    answer: Callable[[Keepalive], object] = lambda record: None
    delay: float = 0.001
    connectable: bool = True
    received: list[tuple[float, Keepalive]] = field(default_factory=list)
    acknowledged: list[float] = field(default_factory=list)
    answered: list[tuple[float, float]] = field(default_factory=list)  # received, acknowledged
    opened: int = 0
    open: int = 0
    deaf: float = DEAF
    running: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.running.set()

    @property
    def records(self) -> list[Keepalive]:
        return [record for _, record in self.received]

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.received]


def silent(record: Keepalive) -> object:
    """Have the packets dropped on their way, until the system gives the connection up."""
    return SILENT


def mute(record: Keepalive) -> object:
    """Never answer, over a connection that stands."""
    return MUTE


SILENT, MUTE = object(), object()


class Network:
    """Names, addresses and the masters there; a look-up fails by raising or by hanging."""

    def __init__(self, names: dict[str, list[str]], masters: dict[str, Master]) -> None:
        self.names = names
        self.masters = masters
        self.looked_up: list[str] = []
        self.dns: Callable[[], bool] = lambda: True
        self.hanging: set[str] = set()

    async def resolve(self, host: str, port: int) -> list[str]:
        self.looked_up.append(host)
        if host in self.hanging:
            await asyncio.Event().wait()
        if not self.dns():
            raise OSError("no such name")
        return list(self.names.get(host, [host]))

    @asynccontextmanager
    async def connect(self, host: str, port: int) -> AsyncIterator[Caller]:
        master = self.masters[host]
        if not master.connectable:
            raise LostRemote(f"cannot connect to {host}")
        master.opened += 1
        master.open += 1
        try:
            yield _Connection(master)
        finally:
            master.open -= 1

    def agent(
        self,
        tiers: str,
        *,
        ttl: float = TTL,
        seed: int = 0,
        hooks: Hooks | None = None,
        live: Path | None = None,
    ) -> Agent:
        return Agent(
            AgentSettings(named(IDENTITY), parse_tiers(tiers, 8000), ttl, live=live),
            connect=self.connect,
            resolve=self.resolve,
            random=Random(seed),
            clock=lambda: CLOCK,
            hooks=hooks,
        )


class _Connection:
    def __init__(self, master: Master) -> None:
        self._master = master

    async def call(self, method: str, *args: object, timeout: float) -> object:
        (raw,) = args
        assert method == "ping"
        assert isinstance(raw, str)
        loop = asyncio.get_running_loop()
        record = parse_keepalive(raw)
        at = loop.time()
        self._master.received.append((at, record))
        answer = self._master.answer(record)
        if answer is SILENT:
            await asyncio.sleep(self._master.deaf)
            raise LostRemote("no packet is acknowledged")
        if answer is MUTE:
            await asyncio.Event().wait()
        await self._master.running.wait()
        await asyncio.sleep(self._master.delay)
        self._master.acknowledged.append(loop.time())
        self._master.answered.append((at, loop.time()))
        return answer


def named(record: Keepalive) -> Keepalive:
    """Return `record` as settings make it, with its key."""
    return parse_keepalive(
        Keepalive(app=record.app, id=record.id, ip=record.ip, key="0", role=record.role).encode()
    )


def gaps(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[None]:
    """Run `agent`, and cancel it without a deregistration."""
    task = asyncio.create_task(agent.run())
    yield
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def now() -> float:
    return asyncio.get_running_loop().time()


def tier(agent: Agent) -> TierStatus:
    return agent.status.tiers[0]


def one(master: Master) -> Network:
    return Network({}, {"10.0.0.1": master})
