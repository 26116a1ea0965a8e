"""How daemons end, and how pods leave: told from lost, in bounds, nothing left behind."""

import signal
import time

import pytest
from tests.e2e.hub import hold, succeed
from tests.e2e.lab import Lab, Scenario
from tests.e2e.observed import Step
from tests.e2e.spy import entries
from tests.rpc.support import until
from tests.support.etcd import EtcdCluster

from kontrol_common.processes import SAME_SIGNAL


async def leaving_early(lab: Lab, etcd: EtcdCluster) -> None:
    """`kontrol leave` deregisters; the daemon stays until it is stopped."""
    tier = await lab.tier(etcd.endpoints)
    for pod in "ab":
        await tier.agent(pod)
    run = await tier.hub.settled("ab")
    environ = {"KONTROL_CONTROL": str(tier.control("a"))}
    leave = await lab.start("leave", environ, command=("-m", "kontrol", "leave"))
    assert await leave.ended() == 0, leave.lines
    later = await tier.hub.settled("b")
    assert tier.hub.since(run)["left"] == {"a"}
    assert tier.agents["a"].process.returncode is None
    again = await lab.start("leave", environ, command=("-m", "kontrol", "leave"))
    assert await again.ended() == 0, again.lines
    assert await tier.agents["a"].end(within=4) == 0
    assert not tier.control("a").exists()
    none = await lab.start("leave", environ, command=("-m", "kontrol", "leave"))
    assert await none.ended() == 4
    assert none.find(f"no agent answers at {tier.control('a')}")
    # SIGINT deregisters too, and a master ends while its pods stay.
    tier.agents["b"].signal(signal.SIGINT)
    assert await tier.agents["b"].ended(within=4) == 0
    await tier.hub.settled(set())
    assert tier.hub.since(later)["left"] == {"b"}
    assert await tier.masters[0].end(within=4) == 0


async def stopping_a_leader_at_work(lab: Lab, etcd: EtcdCluster) -> None:
    """Its callback is ended and recorded, so the successor need not wait to try again."""
    tier = await lab.tier(etcd.endpoints, masters=2, FOVER="8")
    tier.hub.behave = hold
    await tier.agent("a")
    run = await tier.hub.started()
    tier.hub.behave = succeed
    leader = await tier.leader(run.term)
    began = time.monotonic()
    assert await tier.masters[leader].end(within=4) == 0
    assert run.gone.is_set()
    later = await tier.hub.settled("a")
    assert time.monotonic() - began < 6  # less than FOVER: it neither expired nor was waited out
    assert later.term > run.term
    assert (await entries(etcd.endpoints, tier.app))[run.number]["why"] == "stopped"


async def stopping_twice(lab: Lab, etcd: EtcdCluster) -> None:
    """A deaf callback has 5 s; a second signal does not wait for them."""
    tier = await lab.tier(etcd.endpoints)

    def stubborn(_: object) -> list[Step]:
        return [("deaf", None), ("brood", None), ("hold", None)]

    tier.hub.behave = stubborn
    await tier.agent("a")
    run = await tier.hub.started()
    await tier.hub.until(lambda: run.beat > 0 and len(tier.hub.descendants) == 2, "descendants")
    master = tier.masters[0]
    master.signal(signal.SIGTERM)
    await master.logged("SIGTERM: ending")
    later = time.monotonic() + 2 * SAME_SIGNAL  # sooner, it would count as the first
    await until(lambda: run.beat > later)
    master.signal(signal.SIGTERM)
    await master.logged("ended immediately by a second signal")
    assert await master.ended() == 0
    await tier.hub.until(
        lambda: all(p.gone.is_set() for p in (run, *tier.hub.descendants)), "end of the callback"
    )


@pytest.mark.parametrize(
    "scenario",
    [leaving_early, stopping_a_leader_at_work, stopping_twice],
    ids=lambda scenario: scenario.__name__,
)
async def test_endings(scenario: Scenario) -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        await scenario(lab, etcd)
