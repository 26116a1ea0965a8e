"""What belongs to one term, one callback or one store, on real processes and a real etcd."""

import asyncio
import os
import signal
from pathlib import Path

from tests.e2e.daemon import Daemon
from tests.e2e.hub import DEADLINE, hold, succeed
from tests.e2e.lab import CALLBACK, Lab, Tier
from tests.support.etcd import EtcdCluster

from kontrol.rpc.client import Client


def write(path: Path, remark: str) -> None:
    """Put another callback in place of the one at `path`, in one step."""
    beside = path.with_suffix(".new")
    beside.write_text(f"#!/bin/sh\n# {remark}\nexec {CALLBACK}\n", encoding="utf-8")
    beside.chmod(0o755)
    beside.replace(path)


async def test_a_callback_renamed_over_runs_once_on_all_masters_and_no_more() -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        path = lab.folder / "callback"
        write(path, "v1")
        tier = await lab.tier(etcd.endpoints, masters=3, CALLBACK=str(path))
        await asyncio.gather(*(tier.agent(pod) for pod in "ab"))
        first = await tier.hub.settled("ab")
        tier.hub.history.asked = True  # from now on a run may be for the same pods
        write(path, "v2")
        second = await tier.hub.started(after=first)
        assert not any(second.changes(kind) for kind in ("joined", "left", "lost", "changed"))
        await tier.hub.acknowledgement(second)
        tier.hub.history.asked = False
        # The successor has the new one in its candidacy, and repeats nothing.
        await tier.masters[await tier.leader(second.term)].kill()
        await asyncio.wait(
            [
                asyncio.create_task(master.logged(r"leader, in term"))
                for master in tier.masters
                if not master.killed
            ],
            return_when=asyncio.FIRST_COMPLETED,
        )
        await tier.agent("c")
        third = await tier.hub.settled("abc")
        assert third.number == second.number + 1


async def test_a_callback_in_a_mounted_configuration_waits_for_every_master() -> None:
    """As a ConfigMap is updated: a symbolic link is swapped, on one node before the other."""
    async with EtcdCluster() as etcd, Lab() as lab:
        paths = []
        tier = await lab.tier(etcd.endpoints, masters=0, places=2)
        for i in range(2):
            mount = lab.folder / f"node{i}"
            for version in ("v1", "v2"):
                (mount / version).mkdir(parents=True)
                write(mount / version / "callback", version)
            (mount / "..data").symlink_to("v1")
            (mount / "callback").symlink_to("..data/callback")
            paths.append(mount)
            await tier.master(i, KONTROL_CALLBACK="callback", PATH=f"{mount}:{os.environ['PATH']}")
        await tier.agent("a")
        first = await tier.hub.settled("a")
        leader = await tier.leader(first.term)
        tier.hub.history.asked = True
        for i in (leader, 1 - leader):
            assert len(tier.hub.runs) == 1
            (paths[i] / "..new").symlink_to("v2")
            (paths[i] / "..new").replace(paths[i] / "..data")
            await tier.masters[i].logged("the callback changed: its fingerprint is now")
            if i == leader:
                await tier.masters[i].logged(rf"waiting up to 60 s for m{1 - leader} to have")
        second = await tier.hub.started(after=first)
        await tier.hub.acknowledgement(second)


def suspend(tier: Tier, *pods: str, on: bool) -> None:
    for pod in pods:
        tier.agents[pod].signal(signal.SIGSTOP if on else signal.SIGCONT)


async def knows(tier: Tier, master: Daemon, count: int) -> None:
    """Wait until `master` knows of `count` pods."""
    address = tier.addresses[tier.masters.index(master)]
    async with asyncio.timeout(DEADLINE), Client(address, tier.port) as client:
        while True:
            pods = await client.call("pods", "id", timeout=DEADLINE)
            assert isinstance(pods, list)
            if len(pods) == count:
                return
            await asyncio.sleep(0.6)  # it answers unknown clients twice per second


async def test_the_brake_of_a_former_term_is_forgotten() -> None:
    """It held, was deposed, the pods came back; when it leads again, it holds a new loss again."""
    ttl = 4
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=2, TTL=str(ttl), DAMPER="2")
        await asyncio.gather(*(tier.agent(pod) for pod in "abcdef"))
        full = await tier.hub.settled("abcdef")
        former = tier.masters[await tier.leader(full.term)]
        [other] = [master for master in tier.masters if master is not former]
        suspend(tier, *"bcdef", on=True)
        await former.logged("BRAKE: 5 of 6")
        held = asyncio.get_running_loop().time()
        former.signal(signal.SIGSTOP)
        await other.logged("leader, in term")
        suspend(tier, *"bcdef", on=False)
        await knows(tier, other, 6)
        mark = former.mark
        former.signal(signal.SIGCONT)
        await former.logged("candidate, behind", mark)
        await asyncio.sleep(max(0.0, held + 2 * ttl - asyncio.get_running_loop().time()))
        suspend(tier, *"bcdef", on=True)
        await knows(tier, other, 1)
        mark = former.mark
        assert await other.end() == 0
        await former.logged("leader, in term", mark)
        begun = asyncio.get_running_loop().time()
        later = await tier.hub.started(after=full)
        assert asyncio.get_running_loop().time() - begun > 1.5 * ttl
        assert later.changes("lost") == set("bcdef")
        await tier.hub.acknowledgement(later)
        suspend(tier, *"bcdef", on=False)
        await tier.hub.settled("abcdef")


async def test_an_orphaned_run_is_waited_out_for_its_leader_s_own_time() -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=0, places=2)
        tier.hub.behave = hold
        await tier.master(0, KONTROL_FOVER="7")
        await tier.agent("a")
        orphan = await tier.hub.started()
        await tier.master(1, KONTROL_FOVER="3")
        await tier.masters[1].logged("candidate, behind m0")
        await tier.masters[0].kill()
        tier.hub.behave = succeed
        await tier.masters[1].logged(
            rf"run {orphan.number} of term {orphan.term} was not ended: waiting 7 s"
        )
        begun = asyncio.get_running_loop().time()
        later = await tier.hub.started(after=orphan)
        assert asyncio.get_running_loop().time() - begun > 6
        await tier.hub.acknowledgement(later)


async def test_runs_are_not_told_twice_after_a_restore_that_raises_the_revision() -> None:
    """That run numbers only rise is the hub's rule, at every start."""
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=2)
        await tier.agent("a")
        await tier.hub.settled("a")
        snapshot = await etcd.snapshot()
        await tier.agent("b")
        await tier.hub.settled("ab")
        await tier.agent("c")
        before = await tier.hub.settled("abc")
        tier.hub.forget()
        await etcd.restore(snapshot, same_cluster=True, raised=500)
        after = await tier.hub.settled("abc", within=2 * DEADLINE)
        assert after.number > before.number
        assert after.term > before.term
