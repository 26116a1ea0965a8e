"""A crowd of agents and a master that has less than it takes for all of them at the same time.

The master serves one thing after another, in the order in which they came: a handshake in
`HANDSHAKE` seconds, a keepalive in `KEEPALIVE`; what its agent gave up takes as long. Were each
agent to begin again after every attempt without an answer, the work would come faster than it is
done, the queue would grow, and no agent would wait long enough any more.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest
from tests.agent.network import (
    IDENTITY,
    TTL,
    Master,
    Network,
    gaps,
    mute,
    named,
    now,
    one,
    running,
    silent,
    tier,
)
from tests.support.simloop import virtual

from kontrol.agent.agent import Agent, AgentSettings
from kontrol.agent.connection import Caller
from kontrol.ensemble.pod import Keepalive
from kontrol.ensemble.tiers import parse_tiers
from kontrol.rpc.errors import LostRemote, RemoteError

AGENTS = 60
HANDSHAKE, KEEPALIVE = 0.18, 0.02
ATTEMPT, PAUSE = TTL / 6, TTL / 16  # the longest attempt, and the mean pause after it


class Busy:
    """A master, and the network before it."""

    def __init__(self, slowness: float = 1.0) -> None:
        self.up = True
        self.handshakes = 0
        self.acknowledged: dict[int, float] = {}
        self._slowness = slowness
        self._free = 0.0

    async def serve(self, seconds: float) -> None:
        """Wait for the end of what takes so long, after all that waits already."""
        self._free = max(self._free, now()) + self._slowness * seconds
        await asyncio.sleep(self._free - now())


def crowded(masters: dict[str, Busy], number: int) -> Agent:
    """Return an agent of these masters."""

    @asynccontextmanager
    async def connect(host: str, port: int) -> AsyncIterator[Caller]:
        master = masters[host]
        if not master.up:
            raise LostRemote("the connection was refused")
        master.handshakes += 1
        await master.serve(HANDSHAKE)
        yield _Connection(master, number)

    async def resolve(host: str, port: int) -> list[str]:
        return list(masters)

    settings = AgentSettings(named(IDENTITY), parse_tiers("masters", 8000), TTL)
    return Agent(settings, connect=connect, resolve=resolve, random=Random(number))


class _Connection:
    def __init__(self, master: Busy, number: int) -> None:
        self._master = master
        self._number = number

    async def call(self, method: str, *args: object, timeout: float) -> object:
        if not self._master.up:
            raise LostRemote("the connection was closed")
        async with asyncio.timeout(timeout):
            await self._master.serve(KEEPALIVE)
        self._master.acknowledged[self._number] = now()
        return None


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Keep the thousands of warnings for no one."""
    caplog.set_level(logging.ERROR)


@pytest.mark.parametrize(("count", "slowness"), [(1, 1.0), (2, 1.5)])
def test_a_crowd_gets_in_after_an_outage_at_the_rate_at_which_it_is_served(
    count: int, slowness: float
) -> None:
    work = slowness * AGENTS * (HANDSHAKE + KEEPALIVE)
    often = slowness * AGENTS * KEEPALIVE / (TTL / 4)
    assert work > 1.5 * count * (ATTEMPT + PAUSE), "a crowd that gives up asks for more than that"
    assert often < 0.4, "and one that is served for far less"

    @virtual
    async def check() -> None:
        masters = {f"10.0.0.{number}": Busy(slowness) for number in range(count)}
        async with asyncio.TaskGroup() as group:
            for master in masters.values():
                master.up = False
            agents = [crowded(masters, number) for number in range(AGENTS)]
            tasks = [group.create_task(agent.run()) for agent in agents]
            await asyncio.sleep(3 * TTL)
            for master in masters.values():
                master.up = True
            # The first attempt follows within TTL/8. The work of a master is at most that of one
            # connection of each agent, and of the keepalives of those that were acknowledged, one
            # in a good TTL/4.
            await asyncio.sleep(TTL / 8 + work / (1 - often))
            settled = now()
            assert len(_acknowledged(masters)) == AGENTS
            await asyncio.sleep(2 * TTL)
            assert min(_acknowledged(masters).values()) > settled + TTL, "and all stay"
            assert all(master.handshakes <= AGENTS for master in masters.values())
            for task in tasks:
                task.cancel()

    check()


def _acknowledged(masters: dict[str, Busy]) -> dict[int, float]:
    """Return when each agent was last acknowledged."""
    last: dict[int, float] = {}
    for master in masters.values():
        for number, at in master.acknowledged.items():
            last[number] = max(at, last.get(number, 0.0))
    return last


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_late_answer_counts_over_the_connection_on_which_it_comes(hosts: int) -> None:
    @virtual
    async def check() -> None:
        masters = {f"10.0.0.{number}": Master() for number in range(1, hosts + 1)}
        network = Network({"masters": list(masters)}, masters)
        agent = network.agent("masters")
        async with running(agent):
            await asyncio.sleep(TTL)
            for master in masters.values():
                master.running.clear()
            stopped = now()
            await asyncio.sleep(10 * TTL)
            opened = sum(master.opened for master in masters.values())
            # One in a TTL to each, and in the first TTL, when the lease can be saved, one in TTL/3.
            assert opened <= 1 + hosts * (3 + 10)
            assert max(master.open for master in masters.values()) == 1
            for master in masters.values():
                master.running.set()
            await asyncio.sleep(0.1)
            assert tier(agent).error is None, "it has not waited for its next attempt"
            assert sum(master.opened for master in masters.values()) == opened
            late = tier(agent).acknowledged
            assert late is not None
            assert late < TTL / 3, "what is due by when a keepalive was sent, not answered, follows"
            await asyncio.sleep(TTL)
            assert sum(master.open for master in masters.values()) == 1
        times = sorted(at for m in masters.values() for at in m.times if at > stopped + 10 * TTL)
        assert max(gaps(times)) <= TTL / 3 + 0.01

    check()


@virtual
async def test_an_acknowledgement_counts_from_when_its_keepalive_was_sent() -> None:
    master = Master()
    agent = one(master).agent("10.0.0.1")
    async with running(agent):
        master.running.clear()
        await asyncio.sleep(TTL / 5)
        master.running.set()
        await asyncio.sleep(0.1)
        age = tier(agent).acknowledged
        await asyncio.sleep(TTL)
    assert age == pytest.approx(TTL / 5 + 0.1)
    assert max(gaps(master.times)) <= TTL / 3 + 0.01
    assert master.opened == 1


@virtual
async def test_a_later_acknowledgement_of_an_earlier_keepalive_changes_nothing() -> None:
    one, two = Master(), Master()
    network = Network({"masters": ["10.0.0.1", "10.0.0.2"]}, {"10.0.0.1": one, "10.0.0.2": two})
    agent = network.agent("masters")
    async with running(agent):
        await asyncio.sleep(1)
        one.running.clear()
        two.running.clear()
        await asyncio.sleep(2.5 * TTL)
        while now() > max(*one.times, *two.times) + 0.1:  # noqa: ASYNC110 - for the next that is sent
            await asyncio.sleep(0.1)
        earlier, later = sorted((one, two), key=lambda master: master.times[-1])
        await asyncio.sleep(TTL / 5)
        later.running.set()
        await asyncio.sleep(0.1)
        before = tier(agent).acknowledged
        assert before is not None
        assert before == pytest.approx(TTL / 5, abs=0.3)
        assert (earlier.open, later.open) == (1, 1), "since both are late"
        earlier.running.set()
        await asyncio.sleep(0.1)
        assert tier(agent).acknowledged == pytest.approx(before + 0.1)
        await asyncio.sleep(TTL / 3)
        assert (earlier.open, later.open) == (0, 1), "since an answer was in time"


@virtual
async def test_what_has_changed_since_follows_a_late_acknowledgement() -> None:
    master = Master()
    agent = one(master).agent("10.0.0.1")
    async with running(agent):
        await asyncio.sleep(1)
        master.running.clear()
        agent.update("old")
        await asyncio.sleep(TTL / 6 + 0.1)
        agent.update("new")
        master.running.set()
        await asyncio.sleep(0.1)
    assert [record.payload for record in master.records] == ["", "old", "new"]
    assert master.opened == 1


@pytest.mark.parametrize("dies", [silent, mute])
@pytest.mark.parametrize("seed", range(5))
def test_an_only_address_whose_connection_dies_saves_its_lease(
    dies: Callable[[Keepalive], object], seed: int
) -> None:
    """An address may be that of many masters, and a new connection one to another of them."""

    @virtual
    async def check() -> None:
        master = Master()
        async with running(one(master).agent("10.0.0.1", seed=seed)):
            await asyncio.sleep(10 * TTL)
            before = len(master.times)
            master.answer = lambda record: dies(record) if master.opened == 1 else None
            await asyncio.sleep(2 * TTL)
        sent = master.times[before - 1]
        assert min(at for at in master.acknowledged if at > sent + 1) < sent + TTL
        assert master.opened == 2

    check()


@pytest.mark.parametrize("seed", range(10))
def test_an_only_address_is_tried_again_as_soon_as_its_connection_is_lost(seed: int) -> None:
    """Also if that is just after the attempt, when all that is left is to wait for it."""

    @virtual
    async def check() -> None:
        master = Master(deaf=TTL / 6 + 0.3)
        async with running(one(master).agent("10.0.0.1", seed=seed)):
            await asyncio.sleep(TTL)
            master.answer = silent
            await asyncio.sleep(20 * TTL)
            master.answer = lambda _: None
            over = now()
            await asyncio.sleep(TTL)
        assert max(gaps(master.times)) < TTL / 3 + 0.3
        assert min(at for at in master.acknowledged if at > over) - over < TTL / 3 + 0.3

    check()


@virtual
async def test_a_master_that_is_the_only_one_keeps_the_connection_that_it_answers() -> None:
    def unavailable(_: object) -> object:
        raise RemoteError("Unavailable", "no etcd")

    master = Master(unavailable)
    agent = one(master).agent("10.0.0.1")
    async with running(agent):
        await asyncio.sleep(10 * TTL)
        assert master.opened == 1
        assert 10 * 8 < len(master.times) < 10 * 24, "the pauses are those after any failure"
        master.answer = lambda _: None
        await asyncio.sleep(TTL / 8)
        assert tier(agent).error is None
    assert master.opened == 1
    assert master.open == 0


@virtual
async def test_however_many_masters_are_late_few_connections_wait() -> None:
    masters = {f"10.0.0.{number}": Master() for number in range(1, 9)}
    masters["10.0.0.9"] = well = Master()
    for address, master in masters.items():
        if address != "10.0.0.9":
            master.answer = mute
    network = Network({"masters": list(masters)}, masters)
    async with running(network.agent("masters")):
        while not well.acknowledged:
            await asyncio.sleep(0.1)
            assert sum(master.open for master in masters.values()) <= 3
        await asyncio.sleep(0.1)
        assert sum(master.open for master in masters.values()) == 1
