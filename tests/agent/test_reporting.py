"""Reports on virtual time: rhythm, failures, what a tier is told."""

import asyncio
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.agent.network import TTL, Master, Network, gaps, now, one, running, silent, tier
from tests.support.simloop import virtual

from kontrol.ensemble.pod import Keepalive
from kontrol.rpc.errors import RemoteError


@virtual
async def test_it_reports_at_once_and_then_every_third_of_the_ttl() -> None:
    master = Master()
    start = now()
    async with running(one(master).agent("10.0.0.1")):
        await asyncio.sleep(100 * TTL)
    assert master.times[0] == start
    assert len(master.times) >= 300
    assert all(0.8 * TTL / 3 <= gap <= TTL / 3 + 0.01 for gap in gaps(master.times))
    assert len({round(gap, 3) for gap in gaps(master.times)}) > 100  # jitter
    assert master.opened == 1


@virtual
async def test_a_slow_tier_is_no_reason_to_report_less_often() -> None:
    master = Master(delay=2.0)
    async with running(one(master).agent("10.0.0.1")):
        await asyncio.sleep(100 * TTL)
    assert max(gaps(master.times)) <= TTL / 3 + 0.01


@virtual
async def test_the_acknowledgement_tells_ttl_seq_and_leader() -> None:
    master = Master(lambda _: {"seq": 7, "ttl": 6, "leader": "10.0.0.9", "beyond": [1]})
    agent = one(master).agent("10.0.0.1")
    async with running(agent):
        await asyncio.sleep(60)
        status = tier(agent)
    assert max(gaps(master.times)) <= 2.01
    assert (status.tier, status.address) == ("10.0.0.1:8000", "10.0.0.1")
    assert (status.seq, status.leader, status.ttl, status.failures) == (7, "10.0.0.9", 6.0, 0)
    assert status.error is None
    assert status.acknowledged is not None
    assert 0 <= status.acknowledged <= 2.01


@pytest.mark.parametrize("answer", [None, "OK", [], {"seq": "1", "ttl": "x", "leader": 3}, {1: 2}])
def test_any_answer_acknowledges(answer: object) -> None:
    @virtual
    async def check() -> None:
        agent = one(Master(lambda _: answer)).agent("10.0.0.1")
        async with running(agent):
            await asyncio.sleep(TTL)
            status = tier(agent)
        assert status.acknowledged is not None
        assert (status.seq, status.leader, status.ttl) == (None, None, TTL)

    check()


@virtual
async def test_a_change_is_sent_at_once_with_a_higher_n() -> None:
    master = Master()
    agent = one(master).agent("10.0.0.1")
    async with running(agent):
        await asyncio.sleep(1)
        agent.update({"state": "READY"})
        changed = now()
        await asyncio.sleep(0.1)
        agent.update({"state": "READY"})  # no change
        await asyncio.sleep(0.1)
    assert master.times == [changed - 1, changed]
    assert [record.n for record in master.records] == [0, 1]
    assert [record.payload for record in master.records] == ["", {"state": "READY"}]
    assert len({record.nonce for record in master.records}) == 1


@virtual
async def test_true_is_another_payload_than_one() -> None:
    master = Master()
    agent = one(master).agent("10.0.0.1")
    async with running(agent):
        for payload in (1, True, 1.0):
            agent.update(payload)
            await asyncio.sleep(0.1)
    assert [record.n for record in master.records] == [1, 2, 3]


@virtual
async def test_changes_while_a_keepalive_is_under_way_are_one_more_keepalive() -> None:
    master = Master(delay=1.0)
    agent = one(master).agent("10.0.0.1")
    async with running(agent):
        for i in range(5):
            await asyncio.sleep(0.1)
            agent.update(i)
        await asyncio.sleep(3)
    assert [record.payload for record in master.records] == ["", 4]
    assert gaps(master.times) == pytest.approx([1.0])


@pytest.mark.parametrize("seed", range(20))
def test_a_connection_that_dies_without_a_word_is_replaced_in_time(seed: int) -> None:
    @virtual
    async def check() -> None:
        masters = {"10.0.0.1": Master(), "10.0.0.2": Master(), "10.0.0.3": Master()}
        network = Network({"masters": list(masters)}, masters)
        async with running(network.agent("masters", seed=seed)):
            await asyncio.sleep(10 * TTL)
            (current,) = [master for master in masters.values() if master.open]
            current.answer = silent
            await asyncio.sleep(2 * TTL)
            (other,) = [master for master in masters.values() if master.open]
        assert other is not current
        assert other.acknowledged[0] - current.times[-1] < TTL / 3
        assert other.acknowledged[0] - current.acknowledged[-1] < TTL
        assert network.looked_up == ["masters", "masters"]

    check()


def outage(seed: int, length: float, *, connectable: bool) -> None:
    @virtual
    async def check() -> None:
        masters = {"10.0.0.1": Master(), "10.0.0.2": Master()}
        network = Network({"masters": list(masters)}, masters)
        async with running(network.agent("masters", seed=seed)):
            await asyncio.sleep(TTL)
            for master in masters.values():
                master.answer, master.connectable = silent, connectable
            await asyncio.sleep(length)
            for master in masters.values():
                master.answer, master.connectable = (lambda _: None), True
            over = now()
            await asyncio.sleep(TTL)
        back = min(at for m in masters.values() for at in m.acknowledged if at > over)
        assert back - over < TTL / 3 + 0.01

    check()


@given(
    seed=st.integers(0, 2**16),
    length=st.floats(min_value=0, max_value=20 * TTL),
    connectable=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_after_an_outage_the_agent_is_back_within_a_third_of_the_ttl(
    seed: int, length: float, connectable: bool
) -> None:
    outage(seed, length, connectable=connectable)


@virtual
async def test_an_outage_is_not_met_with_a_flood() -> None:
    master = Master(answer=unavailable)
    async with running(one(master).agent("10.0.0.1")):
        await asyncio.sleep(100 * TTL)
    assert len(master.times) < 100 * 24  # the mean delay at the cap is TTL/16
    assert master.open == 0


def unavailable(_: Keepalive) -> object:
    raise RemoteError("Unavailable", "no etcd")


@virtual
async def test_a_master_without_etcd_is_left_for_another_at_once() -> None:
    masters = {"10.0.0.1": Master(unavailable), "10.0.0.2": Master(unavailable)}
    masters["10.0.0.3"] = Master()
    network = Network({"masters": list(masters)}, masters)
    start = now()
    async with running(network.agent("masters")):
        await asyncio.sleep(TTL)
    assert masters["10.0.0.3"].acknowledged[0] - start < 1.0
    assert all(len(masters[f"10.0.0.{i}"].received) <= 1 for i in (1, 2))


@virtual
async def test_a_dead_tier_delays_no_other() -> None:
    alive, dead = Master(), Master(silent)
    network = Network({}, {"10.0.0.1": dead, "10.0.0.2": alive})
    agent = network.agent("10.0.0.1,10.0.0.2")
    start = now()
    async with running(agent):
        await asyncio.sleep(10 * TTL)
        agent.update("new")
        changed = now()
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
    assert alive.times[0] == start
    assert alive.times[-1] == changed
    assert all(gap <= TTL / 3 + 0.01 for gap in gaps(alive.times))
    assert alive.opened == 1


@virtual
async def test_tiers_number_a_pod_each_for_itself() -> None:
    network = Network({}, {f"10.0.0.{i}": Master(_numbers(i)) for i in (1, 2)})
    agent = network.agent("10.0.0.1,10.0.0.2")
    async with running(agent):
        await asyncio.sleep(1)
        assert [status.seq for status in agent.status.tiers] == [1, 2]


def _numbers(i: int) -> Callable[[Keepalive], object]:
    return lambda _: {"seq": i}


@given(st.data(), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_a_tier_gets_records_in_order_and_the_newest_last(data: st.DataObject, seed: int) -> None:
    moods = [lambda _: None, silent, unavailable]
    plan = data.draw(
        st.lists(
            st.tuples(st.floats(0, 10), st.sampled_from(["change", "mood"]), st.integers(0, 2)),
            max_size=30,
        )
    )

    @virtual
    async def check() -> None:
        masters = {f"10.0.0.{i}": Master() for i in range(3)}
        network = Network({"masters": list(masters)}, masters)
        agent = network.agent("masters", seed=seed)
        random = Random(seed)
        async with running(agent):
            for step, (delay, what, which) in enumerate(plan):
                await asyncio.sleep(delay)
                if what == "change":
                    agent.update(step)
                else:
                    random.choice(list(masters.values())).answer = moods[which]
            for master in masters.values():
                master.answer = moods[0]
            await asyncio.sleep(TTL)
            final = agent.status.n
        received = sorted(
            (pair for master in masters.values() for pair in master.received),
            key=lambda pair: pair[0],
        )
        numbers = [record.n or 0 for _, record in received]
        assert numbers == sorted(numbers)
        assert numbers[-1] == final
        assert sum(master.open for master in masters.values()) == 0

    check()
