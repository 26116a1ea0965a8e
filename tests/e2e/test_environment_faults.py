"""Faults around Kontrol: a bad environment, names without an owner, an etcd that was replaced."""

import asyncio
import json
import shutil

from tests.e2e.lab import MASTER, Lab
from tests.support.etcd import EtcdCluster

MISTAKES = {
    "KONTROL_MODE": "agent,mastr",
    "KONTROL_PORT": "eighty",
    "KONTROL_IP": "10.0.0.300",
    "KONTROL_LABELS": '{"app": "x"}',
    "KONTROL_ANNOTATIONS": "{",
    "KONTROL_TTL": "-1",
    "KONTROL_FOVER": "2",
    "KONTROL_BRAKE": "much",
    "KONTROL_ETCD": "http://",
    "KONTROL_LOG": "xml",
}


async def test_a_malformed_environment() -> None:
    async with Lab() as lab:
        daemon = await lab.start("daemon", MISTAKES)
        assert await daemon.ended() == 2
        for name, value in MISTAKES.items():
            assert daemon.find(rf"{name}='?{value[:3]}".replace("{", r"\{")), name
        assert daemon.find("did you mean master")
        taken = await lab.tier(["127.0.0.1:1"])
        second = await lab.start("second", taken.environ("master", "m1", taken.addresses[0], {}))
        assert await second.ended() == 2
        assert second.find(rf"cannot listen on .*:{taken.port}.*another process listens there")


async def test_a_tier_without_masters() -> None:
    async with Lab() as lab, EtcdCluster() as etcd:
        tier = await lab.tier(etcd.endpoints)
        annotations = json.dumps({MASTER: f"no-such-host.invalid:8000,{tier.name}"})
        pod = await tier.agent("pod", KONTROL_ANNOTATIONS=annotations)
        await pod.logged("tier no-such-host.invalid:8000: keepalive failed: ")
        await tier.hub.settled({"pod"})
        assert await pod.end(within=5) == 0
        await tier.hub.settled(set())


async def test_etcd_absent_then_restored_then_empty() -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        await etcd.kill(0)
        tier = await lab.tier(etcd.endpoints, masters=2)
        await asyncio.gather(*(tier.agent(pod) for pod in "ab"))
        await tier.masters[0].logged("no answer from the store")
        await tier.agents["a"].logged("Unavailable: this master has no answer from etcd")
        await etcd.start(0)
        await tier.masters[0].logged("pods/: the store answers")
        early = await tier.hub.settled("ab")

        # An operator restores an older snapshot: what came after it is learnt from the pods again.
        snapshot = await etcd.snapshot()
        await tier.agent("c")
        before = await tier.hub.settled("abc")
        marks = [master.mark for master in tier.masters]
        tier.hub.forget()
        await etcd.restore(snapshot)
        restored = await tier.hub.settled("abc")
        leader = await tier.leader(before.term)
        # Whether it gave up for that or because etcd was away: it led again in a later term.
        await tier.masters[leader].logged("pods/: the store was restored", marks[leader])
        assert early.seqs.items() <= restored.seqs.items()
        first = await tier.hub.started()
        assert first.state == {"run": early.number}
        assert not first.changes("joined") & early.ids

        # It comes back empty.
        tier.hub.forget()
        await etcd.kill(0)
        shutil.rmtree(etcd.members[0].data)
        await etcd.start(0)
        later = await tier.hub.settled("abc")
        assert sorted(later.seqs.values()) == [0, 1, 2]
        assert (await tier.hub.started()).state is None
        # All goes on.
        assert await tier.agents["b"].end() == 0
        await tier.hub.settled("ac")
        assert tier.hub.since(later)["left"] == {"b"}
        assert [await daemon.end() for daemon in tier.masters] == [0, 0]
