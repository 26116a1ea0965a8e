"""The two halves together: every pod's state, as its automaton keeps it, reaches the callback."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from tests.automaton.support import Automaton, automaton
from tests.e2e.lab import Lab
from tests.e2e.observed import Run
from tests.support.etcd import EtcdCluster

BOT = """
initial: boot
terminal: stopped
payload: state.json
states:
- {tag: boot, next: [ready]}
- {tag: ready, next: [ready, draining]}
- {tag: draining, next: [ready]}
- {tag: stopped}
"""


def states(run: Run) -> dict[str, object]:
    return {str(pod["id"]): pod["payload"] for pod in run.pods}


@pytest.mark.timeout(120)
async def test_the_ensemble_sees_every_pods_state() -> None:
    async with EtcdCluster() as etcd, Lab() as lab, AsyncExitStack() as stack:
        tier = await lab.tier(etcd.endpoints)
        expected: dict[str, object] = {}
        bots: dict[str, Automaton] = {}

        async def seen() -> None:
            await tier.hub.settled(expected.keys(), lambda run: states(run) == expected)

        for pod in ("a", "b", "c"):
            folder = lab.folder / pod
            folder.mkdir()
            bots[pod] = await stack.enter_async_context(automaton(folder, BOT))
            await tier.agent(pod, KONTROL_PAYLOAD=str(folder / "state.json"))
            expected[pod] = {"state": "boot"}
        await seen()
        for pod, state in (("b", "ready"), ("a", "ready"), ("b", "draining")):
            assert await bots[pod].ask(f"WAIT {state}") == "OK"
            expected[pod] = {"state": state}
            await seen()
        # To be in a state anew is no change: nothing runs for it.
        runs = len(tier.hub.runs)
        assert await bots["a"].ask("WAIT ready again") == "OK"
        assert await bots["c"].die() == 0
        expected["c"] = {"state": "stopped"}
        await seen()
        assert len(tier.hub.runs) == runs + 1
        await asyncio.gather(bots["a"].die(), bots["b"].die())
