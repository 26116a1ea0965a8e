"""Deregistration, on virtual time: from every tier, in bounded time, and nothing after it."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
from tests.agent.network import TTL, Master, Network, now, silent
from tests.support.simloop import virtual

from kontrol.agent.agent import DEREGISTER_SECONDS, Agent
from kontrol.ensemble.pod import Keepalive
from kontrol.rpc.errors import RemoteError


def refuse(name: str) -> Callable[[Keepalive], object]:
    def answer(record: Keepalive) -> object:
        if record.down:
            raise RemoteError(name, "so it is")
        return None

    return answer


async def leave_after(agent: Agent, seconds: float) -> tuple[Mapping[str, str | None], float]:
    """Run `agent` for `seconds`; return how its leave ended and how long it took."""
    async with asyncio.TaskGroup() as group:
        group.create_task(agent.run())
        await asyncio.sleep(seconds)
        start = now()
        told = await agent.leave()
        return told, now() - start


@virtual
async def test_the_last_keepalive_is_down_and_newer_than_all_before() -> None:
    masters = {f"10.0.0.{i}": Master() for i in (1, 2)}
    agent = Network({}, masters).agent("10.0.0.1,10.0.0.2")
    agent.update("ready")
    told, took = await leave_after(agent, TTL)
    assert told == {"10.0.0.1:8000": None, "10.0.0.2:8000": None}
    assert took < 0.1
    for master in masters.values():
        *before, last = master.records
        assert last.down
        assert last.payload == "ready"
        assert (last.n or 0) > max(record.n or 0 for record in before)
        assert not any(record.down for record in before)
        assert master.open == 0


@virtual
async def test_after_deregistration_nothing_is_sent() -> None:
    master = Master()
    agent = Network({}, {"10.0.0.1": master}).agent("10.0.0.1")
    await leave_after(agent, TTL)
    agent.update("late")
    await asyncio.sleep(10 * TTL)
    assert master.records[-1].down
    assert agent.status.leaving


@virtual
async def test_a_dead_tier_bounds_the_deregistration_and_delays_no_other() -> None:
    alive, dead = Master(), Master(silent)
    agent = Network({}, {"10.0.0.1": dead, "10.0.0.2": alive}).agent("10.0.0.1,10.0.0.2")
    told, took = await leave_after(agent, TTL)
    assert told == {"10.0.0.1:8000": "no answer in time", "10.0.0.2:8000": None}
    assert took == pytest.approx(DEREGISTER_SECONDS)
    assert alive.acknowledged[-1] - (now() - took) < 0.1
    assert dead.records[-1].down
    assert dead.open == 0


@virtual
async def test_a_deregistration_that_is_lost_goes_to_another_address() -> None:
    masters = {f"10.0.0.{i}": Master() for i in (1, 2)}
    network = Network({"masters": list(masters)}, masters)
    agent = network.agent("masters")
    async with asyncio.TaskGroup() as group:
        group.create_task(agent.run())
        await asyncio.sleep(TTL)
        (current,) = [master for master in masters.values() if master.open]
        current.answer = silent
        start = now()
        assert await agent.leave() == {"masters:8000": None}
        assert now() - start < 1.0
    assert network.looked_up == ["masters", "masters"]
    assert all(master.records[-1].down for master in masters.values())


@pytest.mark.parametrize("seed", range(5))
def test_the_address_that_works_hears_it_first(seed: int) -> None:
    @virtual
    async def check() -> None:
        masters = {f"10.0.0.{i}": Master() for i in range(8)}
        agent = Network({"masters": list(masters)}, masters).agent("masters", seed=seed)
        async with asyncio.TaskGroup() as group:
            group.create_task(agent.run())
            await asyncio.sleep(TTL)
            for master in masters.values():
                master.answer = master.answer if master.open else silent
            start = now()
            assert await agent.leave() == {"masters:8000": None}
            assert now() - start < 0.1

    check()


@virtual
async def test_a_hanging_attempt_is_cut_short() -> None:
    master = Master()
    agent = Network({}, {"10.0.0.1": master}).agent("10.0.0.1")
    async with asyncio.TaskGroup() as group:
        group.create_task(agent.run())
        await asyncio.sleep(TTL)
        master.answer = silent
        agent.update("under way")
        await asyncio.sleep(1)
        assert master.records[-1].payload == "under way"
        master.answer = lambda _: None
        start = now()
        assert await agent.leave() == {"10.0.0.1:8000": None}
        assert now() - start < 0.1


@pytest.mark.parametrize(
    ("name", "told"),
    [("Gone", None), ("Stale", "Stale: so it is"), ("Conflict", "Conflict: so it is")],
)
def test_a_refused_deregistration_is_final(name: str, told: str | None) -> None:
    @virtual
    async def check() -> None:
        master = Master(refuse(name))
        agent = Network({}, {"10.0.0.1": master}).agent("10.0.0.1")
        answer, took = await leave_after(agent, TTL)
        assert answer == {"10.0.0.1:8000": told}
        assert took < 0.1
        assert sum(record.down for record in master.records) == 1

    check()


@virtual
async def test_a_master_without_etcd_is_asked_again_without_haste() -> None:
    master = Master(refuse("Unavailable"))
    agent = Network({}, {"10.0.0.1": master}).agent("10.0.0.1")
    told, took = await leave_after(agent, TTL)
    assert told == {"10.0.0.1:8000": "Unavailable: so it is"}
    assert took == pytest.approx(DEREGISTER_SECONDS)
    assert 3 < sum(record.down for record in master.records) <= 45


@virtual
async def test_a_tier_that_never_got_a_keepalive_needs_no_deregistration() -> None:
    network = Network({}, {})
    network.dns = lambda: False
    told, took = await leave_after(network.agent("masters"), TTL)
    assert told == {"masters:8000": None}
    assert took < 0.1


@virtual
async def test_leaving_twice_waits_for_the_same_deregistration() -> None:
    master = Master(delay=0.5)
    agent = Network({}, {"10.0.0.1": master}).agent("10.0.0.1")
    async with asyncio.TaskGroup() as group:
        group.create_task(agent.run())
        await asyncio.sleep(TTL)
        first, second = await asyncio.gather(agent.leave(), agent.leave())
        assert first == second == await agent.leave() == {"10.0.0.1:8000": None}
    assert sum(record.down for record in master.records) == 1


@virtual
async def test_one_who_left_before_the_start_says_nothing() -> None:
    master = Master()
    agent = Network({}, {"10.0.0.1": master}).agent("10.0.0.1")
    await agent.leave()
    await agent.run()
    assert await agent.leave() == {"10.0.0.1:8000": None}
    assert not master.received


@virtual
async def test_leave_returns_when_the_agent_is_cancelled() -> None:
    agent = Network({}, {"10.0.0.1": Master(silent)}).agent("10.0.0.1")
    task = asyncio.create_task(agent.run())
    await asyncio.sleep(1)
    leaving = asyncio.create_task(agent.leave())
    await asyncio.sleep(0.1)
    task.cancel()
    assert await leaving == {"10.0.0.1:8000": "the agent failed"}
