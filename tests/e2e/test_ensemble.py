"""Three masters, three etcd members and twenty pods, through everything that may happen to them.

After each event: an acknowledged run for the ensemble as it then is, told truly what changed, and
pods that stayed up keep their number. That nothing ran needlessly, twice, or at the same time is
checked at each start by the hub.
"""

import asyncio
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.e2e.hub import hold, succeed
from tests.e2e.lab import Lab, Tier
from tests.e2e.observed import Run
from tests.e2e.spy import spying
from tests.support.etcd import EtcdCluster

NOTHING: dict[str, set[str]] = {"joined": set(), "left": set(), "lost": set(), "changed": set()}


class Ensemble:
    """The tier, with the pods as they should be and the last run that was for them."""

    def __init__(self, lab: Lab, tier: Tier) -> None:
        self.lab = lab
        self.tier = tier
        self.pods: set[str] = set()
        self.last: Run | None = None
        self.seqs: dict[str, int] = {}

    def payload(self, pod: str) -> Path:
        return self.lab.folder / f"{pod}.json"

    def report(self, pod: str, value: int) -> None:
        """Have a pod report a payload."""
        new = self.payload(pod).with_suffix(".new")
        new.write_text(f'{{"value": {value}}}', "utf-8")
        new.replace(self.payload(pod))

    async def join(self, *pods: str) -> None:
        self.pods.update(pods)
        for pod in pods:
            await self.tier.agent(pod, KONTROL_PAYLOAD=str(self.payload(pod)))

    async def leave(self, pod: str) -> None:
        self.pods.discard(pod)
        assert await self.tier.agents[pod].end() == 0

    async def lose(self, pod: str) -> None:
        self.pods.discard(pod)
        await self.tier.agents[pod].kill()

    async def expect(
        self, where: Callable[[Run], bool] = lambda run: True, **changes: set[str]
    ) -> Run:
        """Wait for the run for the pods as they are, and check what the runs were told."""
        run = await self.tier.hub.settled(self.pods, where)
        if self.last is not None:
            assert self.tier.hub.since(self.last) == NOTHING | changes
        for pod in self.pods:
            assert run.seqs[pod] == self.seqs.setdefault(pod, run.seqs[pod]), pod
        self.last = run
        return run

    async def succession(self, former: int, marks: list[int]) -> int:
        """Wait for a leader other than `former`."""
        async with AsyncExitStack() as stack:
            group = await stack.enter_async_context(asyncio.TaskGroup())
            waits = {
                group.create_task(master.logged("leader, in term", marks[i])): i
                for i, master in enumerate(self.tier.masters)
                if i != former
            }
            done, others = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in others:
                task.cancel()
            return waits[done.pop()]


def payload_is(pod: str, value: int) -> Callable[[Run], bool]:
    def check(run: Run) -> bool:
        return any(p["id"] == pod and p["payload"] == {"value": value} for p in run.pods)

    return check


@pytest.mark.timeout(400)
async def test_twenty_pods_through_everything() -> None:
    async with (
        EtcdCluster(3) as etcd,
        Lab() as lab,
        spying(etcd.endpoints, "app0") as store,
    ):
        tier = await lab.tier(etcd.endpoints, masters=3, TTL="4")
        ensemble = Ensemble(lab, tier)
        names = [f"pod{i:02}" for i in range(20)]
        await ensemble.join(*names)
        run = await ensemble.expect()
        assert sorted(ensemble.seqs.values()) == list(range(20))

        await ensemble.join("late")
        await ensemble.expect(joined={"late"})

        ensemble.report("pod01", 1)
        await ensemble.expect(payload_is("pod01", 1), changed={"pod01"})

        await ensemble.leave("pod02")
        await ensemble.expect(left={"pod02"})

        await ensemble.lose("pod03")
        run = await ensemble.expect(lost={"pod03"})

        # The leader is stopped: another takes over, and runs nothing for what is acknowledged.
        first = await tier.leader(run.term)
        marks = [master.mark for master in tier.masters]
        assert await tier.masters[first].end() == 0
        await ensemble.succession(first, marks)
        await tier.master(first)
        await ensemble.leave("pod04")
        run = await ensemble.expect(left={"pod04"})

        # The leader dies.
        second = await tier.leader(run.term)
        assert second != first
        marks = [master.mark for master in tier.masters]
        await tier.masters[second].kill()
        await ensemble.succession(second, marks)
        await tier.master(second)
        await ensemble.leave("pod05")
        run = await ensemble.expect(left={"pod05"})

        # A member of etcd dies, its leader at that.
        member = await etcd.leader()
        await etcd.kill(member)
        ensemble.report("pod06", 6)
        run = await ensemble.expect(payload_is("pod06", 6), changed={"pod06"})
        await etcd.start(member)

        # The leader dies after a leave and a loss, before the run for them.
        tier.hub.behave = hold
        ensemble.report("pod07", 7)
        held = await tier.hub.started(after=run)
        await ensemble.leave("pod08")
        await ensemble.lose("pod09")
        await store.pods(*ensemble.pods)
        tier.hub.behave = succeed
        third = await tier.leader(held.term)
        await tier.masters[third].kill()
        run = await ensemble.expect(changed={"pod07"}, left={"pod08"}, lost={"pod09"})
        assert held.gone.is_set()
        assert run.term > held.term
        await tier.master(third)

        # No masters for longer than the TTL, and one pod dies meanwhile: the others lost nothing.
        for master in tier.masters:
            master.signal(signal.SIGTERM)
        assert [await master.ended() for master in tier.masters] == [0, 0, 0]
        await ensemble.lose("pod10")
        await store.pods()
        await asyncio.gather(*(tier.master(i) for i in range(3)))
        await ensemble.expect(lost={"pod10"})

        # All pods leave together: not a loss, so no brake.
        for pod in ensemble.pods:
            tier.agents[pod].signal(signal.SIGTERM)
        for pod in ensemble.pods:
            assert await tier.agents[pod].ended() == 0
        gone, ensemble.pods = ensemble.pods, set()
        await ensemble.expect(left=gone)
