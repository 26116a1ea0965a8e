"""Runs at their time, notes and urgent changes, on real processes and a real etcd."""

import time

from tests.e2e.feed import feeding
from tests.e2e.hub import succeed
from tests.e2e.lab import Lab, Tier
from tests.e2e.observed import Run, Step
from tests.e2e.spy import entries
from tests.support.etcd import EtcdCluster, free_port

NOTE = "replica 10.0.0.3 does not answer"
KINDS = ("joined", "left", "lost", "changed")


def leave(tier: Tier, **files: str) -> None:
    """Have the next run write these files, and those after nothing."""
    left = iter([files])

    def behave(run: Run) -> list[Step]:
        wanted = next(left, {})
        return [*(("write", [name, text]) for name, text in wanted.items()), *succeed(run)]

    tier.hub.behave = behave


async def status(lab: Lab, tier: Tier, master: int, port: str) -> tuple[int, str]:
    """Return the exit status of `kontrol status`, and what it printed."""
    at = f"http://{tier.addresses[master]}:{port}"
    command = ("-m", "kontrol", "status", "--master", at)
    asking = await lab.start("status", {}, command=command)
    return await asking.ended(), "\n".join(asking.lines)


async def test_a_run_that_was_asked_for_comes_at_its_time_under_the_next_leader() -> None:
    port, seconds = str(free_port()), 14.0
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=3, HTTP_PORT=port, FOVER="8")
        leave(tier, AGAIN_FILE=f"{seconds:g}\n", NOTE_FILE=f"{NOTE}\n")
        tier.hub.history.asked = True  # runs may be for the same pods
        await tier.agent("a")
        first = await tier.hub.settled("a")
        leader = await tier.leader(first.term)
        standby = (leader + 1) % 3
        await tier.masters[leader].kill()
        code, text = await status(lab, tier, standby, port)
        assert code == 6
        assert NOTE in " ".join(text.split())
        second = await tier.hub.started(after=first)
        await tier.hub.acknowledgement(second)
        assert second.term > first.term
        assert not any(second.changes(kind) for kind in KINDS)
        assert second.started - first.started >= seconds
        # At its time: not counted again from when the next leader began, over 6 s later.
        assert second.started - first.started < seconds + 5
        recorded = await entries(etcd.endpoints, tier.app)
        assert [recorded[run.number]["reason"] for run in (first, second)] == ["ensemble", "again"]
        assert (recorded[first.number]["again"], recorded[first.number]["note"]) == (seconds, NOTE)
        code, text = await status(lab, tier, standby, port)
        assert (code, NOTE in text) == (0, False), text
        assert len(tier.hub.runs) == 2


async def test_the_leader_says_when_it_runs_again_and_junk_fails_the_run() -> None:
    port = str(free_port())
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, HTTP_PORT=port)
        leave(tier, AGAIN_FILE="soon")
        await tier.agent("a")
        failed = await tier.hub.started()
        await tier.hub.settled("a")
        recorded = await entries(etcd.endpoints, tier.app)
        assert recorded[failed.number]["ok"] is False
        assert recorded[failed.number]["why"].startswith("$AGAIN_FILE holds 'soon'; expected the")
        leave(tier, AGAIN_FILE="500", NOTE_FILE=NOTE)
        await tier.agent("b")
        await tier.hub.settled("ab")
        code, text = await status(lab, tier, 0, port)
        assert code == 6
        said = " ".join(text.split())
        assert "- the callback runs again in 8 min: " in said or "runs again in 500 s: " in said
        assert said.count(NOTE) == 1


async def test_it_runs_every_so_often_and_what_is_urgent_does_not_wait() -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, TTL="60", EVERY="2")
        tier.hub.history.asked = True
        async with feeding(tier) as feeder:
            await feeder.ping("a")
            runs = [await tier.hub.settled("a")]
            for _ in range(2):
                runs.append(await tier.hub.started(after=runs[-1]))
                assert runs[-1].started - runs[-2].started >= 2
            await tier.hub.acknowledgement(runs[-1])
            assert len({run.digest for run in runs}) == 1
        await tier.masters[0].end()

        urgent = "joined,left,payload.state"
        waits = await lab.tier(etcd.endpoints, TTL="60", DAMPER="60", URGENT=urgent)
        async with feeding(waits) as feeder:
            await feeder.ping("a", payload={"state": "A", "load": 1})
            first = await waits.hub.settled("a")
            await feeder.ping("b")
            await waits.hub.settled("ab")
            await feeder.ping("a", payload={"state": "A", "load": 2})
            await waits.masters[0].logged("change seen; waiting (60|5.*) s for quiet")
            before = waits.hub.runs[-1]
            await feeder.ping("a", payload={"state": "B", "load": 2})
            second = await waits.hub.started(after=before)
            assert second.changes("changed") == {"a"}
            await waits.hub.acknowledgement(second)
            await feeder.ping("a", payload={"state": "B", "load": 3})
            began = time.monotonic()
            await feeder.ping("b", down=True)
            third = await waits.hub.started(after=second)
            assert third.started - began < 30
            assert (third.changes("left"), third.changes("changed")) == ({"b"}, {"a"})
            assert first.number < before.number < second.number < third.number
            await waits.hub.acknowledgement(third)
