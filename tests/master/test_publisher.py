"""What the leader tells people of its plan: once in its log, and in the store when it lasts."""

import asyncio
import json
import logging
from dataclasses import replace

import pytest
from tests.master.support import KEYS
from tests.master.test_election import term_of
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.simloop import virtual

from kontrol.ensemble.ensemble import Member
from kontrol.master.leader.policy import Hold, Idle, Run, Wait
from kontrol.master.leader.publisher import PlanPublisher
from kontrol.master.term import OwnedKey
from kontrol.store.protocol import KeyValue, Range

LOST = [Member(seq, f"k{seq}", f"p{seq}", f"10.0.0.{seq}", "r", "h") for seq in (1, 2, 3)]


async def publisher(store: MemoryStore) -> PlanPublisher:
    async def nothing() -> tuple[list[Member], int]:
        return [], 0

    key = OwnedKey(store, await term_of(store), KEYS.plan)
    return PlanPublisher(key, lambda: "today", nothing, lambda: 7)


def waiting(hold: Hold, seconds: float = 30.0) -> Wait:
    return Wait("ensemble", asyncio.get_running_loop().time() + seconds, hold)


@virtual
async def test_each_hold_that_people_should_know_of_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    told = await publisher(MemoryStore(MemoryCluster()))
    expected: dict[Hold, str] = {
        "gap": "3 of 4 pods are missing (#1 p1, #2 p2, #3 p3) after an outage of masters",
        "brake": "BRAKE: 3 of 4 pods are lost (#1 p1, #2 p2, #3 p3); the callback is held for 30 s",
        "damper": "change seen; waiting 30 s for quiet (KONTROL_DAMPER)",
        "rollout": "the callback changed: waiting up to 30 s for m2, m3 to have the new one",
    }
    for hold, text in expected.items():
        caplog.clear()
        for seconds in (30.0, 29.0, 28.0):
            told.update(waiting(hold, seconds), LOST, 4, ("m2", "m3"))
        (line,) = caplog.messages
        assert line.startswith(text)
    caplog.clear()
    told.update(waiting("brake"), LOST, 4)  # another than before
    told.update(Idle())
    told.update(waiting("brake"), LOST, 4)  # a new wait
    assert len(caplog.messages) == 2


@virtual
async def test_what_is_as_usual_is_not_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    told = await publisher(MemoryStore(MemoryCluster()))
    holds: tuple[Hold, ...] = ("retry", "predecessor")
    for hold in holds:
        told.update(waiting(hold))
    told.update(Run("ensemble", retry=False))
    told.update(Idle())
    assert caplog.messages == []


async def published(store: MemoryStore) -> KeyValue:
    return (await store.range(Range(KEYS.plan))).kvs[0]


@virtual
async def test_a_plan_is_written_when_it_changes_and_has_lasted() -> None:
    store = MemoryStore(MemoryCluster())
    told = await publisher(store)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(told.publish())
        await asyncio.sleep(1)
        assert json.loads((await published(store)).value)["what"] == "idle"
        told.update(Run("ensemble", retry=False))
        told.update(Idle())  # before the run was published
        await asyncio.sleep(1)
        assert (await published(store)).version == 1
        plan = waiting("brake", 30.4)
        told.update(plan, LOST, 4)
        await asyncio.sleep(1)
        for _ in range(5):  # the same: what is left of it is not counted down
            told.update(replace(plan), LOST, 4)
            await asyncio.sleep(1)
        kv = await published(store)
        assert kv.version == 2
        assert json.loads(kv.value) == {
            "what": "wait",
            "reason": "ensemble",
            "hold": "brake",
            "seconds": 29.9,
            "lost": ["#1 p1", "#2 p2", "#3 p3"],
            "missing": 3,
            "of": 4,
            "peers": [],
            "acknowledged": 7,
            "at": "today",
        }
        told.update(Run("ensemble", retry=True))
        await asyncio.sleep(1)
        assert json.loads((await published(store)).value)["what"] == "run"
        task.cancel()
