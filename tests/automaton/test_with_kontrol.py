"""The two halves together: every pod's state, as its automaton keeps it, reaches the callback."""

import asyncio
import json
import os
import signal
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


SERVER = """
initial: start
terminal: stop
payload: state.json
states:
- {tag: start, on: {success: serve}}
- {tag: serve, shell: exec sleep 600, on: {failure: start}}
- {tag: stop}
"""


def states(run: Run) -> dict[str, object]:
    return {str(pod["id"]): pod["payload"]["state"] for pod in run.pods if pod["payload"]}


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
            expected[pod] = "boot"
        await seen()
        for pod, state in (("b", "ready"), ("a", "ready"), ("b", "draining")):
            assert await bots[pod].ask(f"WAIT {state}") == "OK"
            expected[pod] = state
            await seen()
        # To enter the same state again is no change: nothing runs for it.
        runs = len(tier.hub.runs)
        assert await bots["a"].ask("WAIT ready again") == "OK"
        assert await bots["c"].die() == 0
        expected["c"] = "stopped"
        await seen()
        assert len(tier.hub.runs) == runs + 1
        await asyncio.gather(bots["a"].die(), bots["b"].die())


@pytest.mark.parametrize("killed", ["the script", "automaton"])
async def test_a_restart_within_the_damper_leads_to_a_run(killed: str) -> None:
    manifest, state = (SERVER, "serve") if killed == "the script" else (BOT, "boot")
    async with EtcdCluster() as etcd, Lab() as lab, AsyncExitStack() as stack:
        tier = await lab.tier(etcd.endpoints, DAMPER="3")
        folder = lab.folder / "pod"
        folder.mkdir()
        bot = await stack.enter_async_context(automaton(folder, manifest))
        await tier.agent("a", KONTROL_PAYLOAD=str(folder / "state.json"))
        await tier.agent("b")
        before = await tier.hub.settled({"a", "b"}, lambda run: states(run) == {"a": state})

        if killed == "the script":
            os.kill(json.loads(await bot.ask("STATUS"))["pid"], signal.SIGKILL)
            await bot.says("start -> serve")
            await bot.says("serve -> start")
            await bot.says("start -> serve")
        else:
            bot.process.kill()
            await bot.process.wait()
            bot = await stack.enter_async_context(automaton(folder, manifest))
        run = await tier.hub.started(after=before)
        await tier.hub.acknowledgement(run)
        assert states(run) == {"a": state}, "it was back within the damper"
        assert run.changes("changed") == {"a"}
        assert await bot.die() == 0
