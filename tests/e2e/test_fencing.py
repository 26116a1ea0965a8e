"""A leader that can no longer lead: its callback is dead before the next leader starts its own.

That no two live at a time is the hub's rule: by the kernel's word at the moment of the start, and
by the last sign of life of the former against the first moment of the latter, on one clock.
"""

import signal
from collections.abc import Awaitable, Callable

import pytest
from tests.e2e.feed import feeding
from tests.e2e.hub import hold, succeed
from tests.e2e.lab import Lab, Tier
from tests.e2e.observed import Step
from tests.e2e.wire import Wire
from tests.support.etcd import EtcdCluster

Fault = Callable[[Tier, int, list[Wire]], Awaitable[None]]


async def stalled(tier: Tier, leader: int, _: list[Wire]) -> None:
    tier.masters[leader].signal(signal.SIGSTOP)


async def cut_off(tier: Tier, leader: int, wires: list[Wire]) -> None:
    wires[leader].part()


async def killed(tier: Tier, leader: int, _: list[Wire]) -> None:
    await tier.masters[leader].kill()


async def scenario(lab: Lab, etcd: str, fault: Fault) -> None:
    async with Wire(etcd) as one, Wire(etcd) as two:
        wires = [one, two]
        tier = await lab.tier([etcd], masters=0, places=2, TTL="60")
        for i, wire in enumerate(wires):
            await tier.master(i, KONTROL_ETCD=wire.endpoint)

        def stubborn(_: object) -> list[Step]:
            return [("deaf", None), ("brood", None), ("hold", None)]

        tier.hub.behave = stubborn
        async with feeding(tier) as feeder:
            await feeder.ping("a")
        former = await tier.hub.started()
        await tier.hub.until(
            lambda: len(tier.hub.descendants) == 2 and former.beat > 0, "descendants, and beat"
        )
        leader = await tier.leader(former.term)
        tier.hub.behave = hold
        await fault(tier, leader, wires)
        later = await tier.hub.started(after=former)
        assert former.gone.is_set()
        assert all(process.gone.is_set() for process in tier.hub.descendants)
        assert later.term > former.term
        assert former.beat < later.started
        # The former comes back, finds that it is deposed, and takes nothing from its successor.
        tier.hub.behave = succeed
        if fault is not killed:
            mark = tier.masters[leader].mark
            tier.masters[leader].signal(signal.SIGCONT)
            wires[leader].heal()
            await tier.masters[leader].logged("candidate, behind", mark)
            assert not tier.masters[leader].find("guard")  # it did its work, and is not blamed
        assert not later.gone.is_set()
        later.tell(*succeed(later))
        await tier.hub.acknowledgement(later)
        assert [await m.end() for m in tier.masters if not m.killed] == [0] * (
            1 if fault is killed else 2
        )
        assert len(tier.hub.runs) == 2


@pytest.mark.parametrize("fault", [stalled, cut_off, killed], ids=lambda fault: fault.__name__)
async def test_the_callback_dies_before_its_successor_starts(fault: Fault) -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        await scenario(lab, etcd.endpoints[0], fault)
