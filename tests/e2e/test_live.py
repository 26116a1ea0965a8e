"""Live facts on real processes: from automaton's probe by an agent and a master to the callback."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.automaton.support import automaton
from tests.automaton.test_probe import content
from tests.e2e.lab import Lab
from tests.e2e.observed import Run
from tests.support.etcd import EtcdCluster, free_port

TTL = 3.0
SLACK = 2.0  # seconds for two processes to be scheduled on a busy machine

# A replica whose offset never rests.
BOT = """
initial: replica
terminal: stopped
payload: payload.json
live:
  file: live.json
  probe: |
    n=$(cat n 2> /dev/null || echo 0)
    echo $((n + 1)) > n
    echo "{\\"offset\\": $n, \\"at\\": $(date +%s)}"
  every: 0.2
states:
- {tag: replica, next: [primary]}
- {tag: primary, next: [replica]}
- {tag: stopped}
"""


def facts(run: Run) -> dict[str, Any]:
    return {str(pod["id"]): pod["live"] for pod in run.pods if "live" in pod}


async def test_an_offset_that_never_rests_causes_no_run_and_each_run_sees_it() -> None:
    async with EtcdCluster() as etcd, Lab() as lab, AsyncExitStack() as stack:
        port = str(free_port())
        tier = await lab.tier(etcd.endpoints, masters=2, TTL=f"{TTL:g}", HTTP_PORT=port)
        bots = {}
        for pod in ("a", "b", "c"):
            folder = lab.folder / pod
            folder.mkdir()
            bots[pod] = await stack.enter_async_context(automaton(folder, BOT))
            await tier.agent(
                pod,
                KONTROL_PAYLOAD=str(folder / "payload.json"),
                KONTROL_LIVE=str(folder / "live.json"),
            )
        first = await tier.hub.settled("abc")
        live = {pod: lab.folder / pod / "live.json" for pod in bots}
        begun = {pod: offset(path) for pod, path in live.items()}
        # Over five times the TTL, so at least 15 keepalives of each pod.
        await asyncio.gather(*(reaches(path, begun[pod] + 75) for pod, path in live.items()))
        assert tier.hub.runs[-1] is first, "no run came of it"

        assert await bots["b"].ask("GOTO primary") == "OK"
        second = await tier.hub.started(after=first)
        now = {pod: json.loads(path.read_text())["at"] for pod, path in live.items()}
        await tier.hub.acknowledgement(second)
        assert second.changes("changed") == {"b"}
        seen = facts(second)
        assert seen.keys() == {"a", "b", "c"}
        for pod, found in seen.items():
            assert found["offset"] > begun[pod] + 60
            assert now[pod] - found["at"] <= TTL / 3 + 1 + SLACK, "as the documentation says"
        asking = await lab.start(
            "pods",
            {},
            command=("-m", "kontrol", "pods", "--master", f"http://{tier.addresses[0]}:{port}"),
        )
        assert await asking.ended() == 0
        assert "\n".join(asking.lines).count('"offset": ') == 3

        # The master of some pods dies: those report to the other one, and their facts go on.
        leader = await tier.leader(second.term)
        await tier.masters[1 - leader].kill()
        then = {pod: offset(path) for pod, path in live.items()}
        await asyncio.gather(*(reaches(path, then[pod] + 30) for pod, path in live.items()))
        assert await bots["c"].ask("GOTO primary") == "OK"
        third = await tier.hub.started(after=second)
        await tier.hub.acknowledgement(third)
        assert third.changes("changed") == {"c"}
        assert all(found["offset"] > then[pod] for pod, found in facts(third).items())

        # A pod without facts any more: its automaton has ended, its agent goes on.
        assert await bots["a"].die() == 0
        fourth = await tier.hub.started(after=third)
        await tier.hub.acknowledgement(fourth)
        assert fourth.changes("changed") == {"a"}
        await asyncio.gather(bots["b"].die(), bots["c"].die())


async def reaches(path: Path, most: int) -> None:
    """Await an offset above `most`."""
    await content(path, lambda now: now.get("offset", 0) > most)


def offset(path: Path) -> int:
    found: int = json.loads(path.read_text()).get("offset", 0)
    return found
