"""Topologies: masters that are pods, tiers over tiers, dead tiers, dead connections."""

import asyncio
import json
import time

import pytest
from tests.e2e.lab import MASTER, Lab, Scenario
from tests.e2e.wire import Wire
from tests.support.etcd import EtcdCluster


async def every_pod_a_master(lab: Lab, etcd: EtcdCluster) -> None:
    """Each pod is master and agent; the leader's pod leaves, and then one is killed."""
    tier = await lab.tier(etcd.endpoints, masters=0, places=3)
    await asyncio.gather(*(tier.master(i, mode="master,agent") for i in range(3)))
    run = await tier.hub.settled({"m0", "m1", "m2"})
    leader = await tier.leader(run.term)
    assert await tier.masters[leader].end() == 0
    assert not tier.control(f"m{leader}").exists()
    others = {"m0", "m1", "m2"} - {f"m{leader}"}
    later = await tier.hub.settled(others)
    assert later.term > run.term
    assert tier.hub.since(run)["left"] == {f"m{leader}"}
    await tier.master(leader, mode="master,agent")
    back = await tier.hub.settled({"m0", "m1", "m2"})
    assert back.seqs == run.seqs
    killed = await tier.leader(later.term)
    await tier.masters[killed].kill()
    last = await tier.hub.settled({"m0", "m1", "m2"} - {f"m{killed}"})
    assert tier.hub.since(back)["lost"] == {f"m{killed}"}
    assert last.seqs == {pod: seq for pod, seq in run.seqs.items() if pod != f"m{killed}"}
    ended = [await m.end() for m in tier.masters if not m.killed]
    assert ended == [0, 0]


async def monitoring_the_monitor(lab: Lab, etcd: EtcdCluster) -> None:
    """The masters of one tier are pods of another, which hears of their death."""
    upper = await lab.tier(etcd.endpoints)
    lower = await lab.tier(etcd.endpoints, masters=0, places=2)
    annotations = json.dumps({MASTER: upper.name})
    for i in range(2):
        await lower.master(i, mode="master,agent", KONTROL_ANNOTATIONS=annotations)
    await lower.agent("pod")
    run = await lower.hub.settled({"pod"})
    before = await upper.hub.settled({"m0", "m1"})
    leader = await lower.leader(run.term)
    await lower.masters[leader].kill()
    await upper.hub.settled({f"m{1 - leader}"})
    assert upper.hub.since(before)["lost"] == {f"m{leader}"}
    # The lower tier goes on without it.
    assert await lower.agents["pod"].end() == 0
    await lower.hub.settled(set())
    assert lower.hub.since(run)["left"] == {"pod"}


async def one_tier_dead(lab: Lab, etcd: EtcdCluster) -> None:
    """The dead one accepts connections, and never says a word; the other is not delayed by it."""
    tier = await lab.tier(etcd.endpoints)
    async with Wire("127.0.0.1:1") as dead:
        dead.part()
        annotations = json.dumps({MASTER: f"{dead.endpoint}, {tier.name}"})
        pod = await tier.agent("pod", KONTROL_ANNOTATIONS=annotations)
        await pod.logged("reporting to")
        ready = time.monotonic()
        run = await tier.hub.settled({"pod"})
        assert time.monotonic() - ready < 3
        await pod.logged("keepalive to 127.0.0.1 failed: no answer in time")
        began = time.monotonic()
        status = await pod.end()
        assert time.monotonic() - began < 4  # 2 s for the deregistration that no master accepts
        assert status == 0
        await tier.hub.settled(set())
        assert tier.hub.since(run)["left"] == {"pod"}


async def a_connection_that_dies_in_silence(lab: Lab, etcd: EtcdCluster) -> None:
    """No close and no reset: the pod is seen again in time, over another connection."""
    tier = await lab.tier(etcd.endpoints)
    ttl = float(tier.options["TTL"])
    async with Wire(f"{tier.addresses[0]}:{tier.port}", lab.address(), tier.port) as wire:
        annotations = json.dumps({MASTER: wire.endpoint})
        pod = await tier.agent("pod", KONTROL_ANNOTATIONS=annotations)
        await tier.hub.settled({"pod"})
        wire.lose()
        began = time.monotonic()
        await pod.logged("reporting to .* again; failed attempts: 1")
        # The next keepalive is sent within TTL/3, and then found lost and sent again in as much.
        assert time.monotonic() - began < ttl * 2 / 3 + 1
        assert len(tier.hub.runs) == 1  # it was never missed
        assert await pod.end() == 0
        await tier.hub.settled(set())


@pytest.mark.parametrize(
    "scenario",
    [every_pod_a_master, monitoring_the_monitor, one_tier_dead, a_connection_that_dies_in_silence],
    ids=lambda scenario: scenario.__name__,
)
async def test_topologies(scenario: Scenario) -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        await scenario(lab, etcd)
