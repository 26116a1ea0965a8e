"""Callbacks that misbehave: each is a failed run, recorded with its reason and tried again.

The state stays as the last acknowledged run left it, and nothing of a callback is left when the
next one starts: two of the hub's rules.
"""

import json

import pytest
from tests.e2e.feed import Feeder, feeding
from tests.e2e.hub import succeed
from tests.e2e.lab import Lab, Scenario, Tier
from tests.e2e.observed import Run, Step
from tests.e2e.spy import entries
from tests.support.etcd import EtcdCluster

MEGABYTE = 1024 * 1024


async def fail(tier: Tier, feeder: Feeder, *steps: Step, times: int = 1) -> tuple[Run, Run]:
    """Have the next runs take these steps and those after succeed; return the first and last."""
    left = iter(range(times))

    def behave(run: Run) -> list[Step]:
        return succeed(run) if next(left, None) is None else list(steps)

    tier.hub.behave = behave
    before = tier.hub.runs[-1] if tier.hub.runs else None
    await feeder.ping("a", payload=str(steps)[:100])
    first = await tier.hub.started(after=before)
    last = await tier.hub.started(first.number + times)
    await tier.hub.acknowledgement(last)
    assert first.gone.is_set()
    assert last.state == (None if before is None else {"run": before.number})
    return first, last


async def each_of_many(lab: Lab, etcd: EtcdCluster) -> None:
    tier = await lab.tier(etcd.endpoints, TTL="60", FOVER="15", LOG="json")
    async with feeding(tier) as feeder:
        assert await feeder.ping("a")
        await tier.hub.settled({"a"})
        master = tier.masters[0]
        before = master.rss()
        flood, _ = await fail(tier, feeder, ("stderr", 100 * MEGABYTE), ("exit", 3))
        assert master.rss() - before < 40 * MEGABYTE
        assert sum(map(len, master.lines)) < 2 * MEGABYTE  # a log is no place for it all
        garbage, _ = await fail(tier, feeder, ("print", '{"run": 1'))
        chatter, _ = await fail(tier, feeder, ("stdout", MEGABYTE))
        brood, _ = await fail(tier, feeder, ("deaf", None), ("brood", None), ("exit", 7))
        assert len(tier.hub.descendants) == 2
        assert all(process.gone.is_set() for process in tier.hub.descendants)
        orphan, retried = await fail(tier, feeder, ("orphan", None), ("hang", None), times=2)
        assert retried.started - orphan.started > 0.8 + 1.6  # backoff of 1 s, then 2 s, less jitter
        recorded = await entries(etcd.endpoints, tier.app)
        assert recorded[flood.number]["status"] == 3
        assert 0 < len(recorded[flood.number]["stderr"]) <= 4096
        assert recorded[garbage.number]["why"].startswith("printed invalid JSON: line 1 column 10")
        assert "more than 524288 bytes" in recorded[chatter.number]["why"]
        assert recorded[brood.number]["status"] == 7
        assert recorded[orphan.number]["why"].startswith("its guard process died")
        assert {run for run, entry in recorded.items() if entry["ok"]} == set(tier.hub.acknowledged)
        for run, entry in recorded.items():
            if not entry["ok"]:
                assert master.find(rf"run {run} failed after .*: {entry['why'][:20]}"), entry
        # Empty output keeps the state; what is printed replaces it.
        tier.hub.behave = lambda run: []
        await feeder.ping("a", payload="quiet")
        quiet = await tier.hub.started(after=retried)
        await tier.hub.acknowledgement(quiet)
        assert quiet.state == {"run": retried.number}
        tier.hub.behave = lambda run: [("print", json.dumps({"any": ["JSON", None]}))]
        await feeder.ping("a", payload="loud")
        loud = await tier.hub.started(after=quiet)
        await tier.hub.acknowledgement(loud)
        assert loud.state == {"run": retried.number}
        tier.hub.behave = lambda run: []
        await feeder.ping("b")
        last = await tier.hub.settled({"a", "b"})
        assert last.state == {"any": ["JSON", None]}
    assert await master.end() == 0


async def one_that_never_ends(lab: Lab, etcd: EtcdCluster) -> None:
    """It is deaf too, and so costs its time-out and 5 s of grace."""
    tier = await lab.tier(etcd.endpoints, TTL="60", FOVER="15", CALLBACK_TIMEOUT="1")
    async with feeding(tier) as feeder:
        stuck, _ = await fail(tier, feeder, ("deaf", None), ("brood", None), ("hang", None))
    assert all(process.gone.is_set() for process in tier.hub.descendants)
    recorded = await entries(etcd.endpoints, tier.app)
    assert recorded[stuck.number]["why"] == "timed out after 1 s"
    assert 5.5 < recorded[stuck.number]["seconds"] < 9


async def one_that_is_not_there(lab: Lab, etcd: EtcdCluster) -> None:
    tier = await lab.tier(etcd.endpoints, TTL="60", CALLBACK="/nowhere/callback --option")
    async with feeding(tier) as feeder:
        await feeder.ping("a")
        await tier.masters[0].logged(
            "run 2 failed after .*: could not be found: '/nowhere/callback': correct the path"
        )
    assert not (await entries(etcd.endpoints, tier.app))[1]["ok"]


@pytest.mark.parametrize(
    "scenario",
    [each_of_many, one_that_never_ends, one_that_is_not_there],
    ids=lambda scenario: scenario.__name__,
)
async def test_callbacks_that_misbehave(scenario: Scenario) -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        await scenario(lab, etcd)
