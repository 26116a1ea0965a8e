"""Many pods that die together, until the callback: whether it is one, and for the right list.

All agents report for a while, then the process of some of them is killed. Their leases end within
a TTL of their last keepalive each, and the callback is to run once, after the damper.
"""

import asyncio
import json
import sys
import time
from typing import Any

from bench import Option
from bench.generator import Options
from bench.load import generator
from bench.stage import TTL, most_agents, stage
from bench.table import Row

TITLE = "Pods that die together"
OPTIONS = {
    "agents": Option(5000, 100, "pods that die"),
    "others": Option(500, 20, "pods that live on"),
    "ttl": Option(TTL, 5, "seconds"),
    "damper": Option(10, 2, "seconds"),
}
_CALLBACK = f"""#!{sys.executable} -S
import time
begun = time.monotonic()  # the same clock as that of the benchmark
import json, os
pods = json.load(open(os.environ["PODS_FILE"]))
changes = json.load(open(os.environ["CHANGES_FILE"]))
ids = sorted(pod["id"] for pod in pods)
counts = {{name: len(changes.get(name, ())) for name in ("joined", "left", "lost", "changed")}}
line = json.dumps([begun, len(ids), ids[:1], ids[-1:], counts])
open("FIFO", "w").write(line + "\\n")
"""


async def run(*, agents: int, others: int, ttl: int, damper: int) -> list[Row]:
    """Measure."""
    agents = most_agents(agents)
    async with stage(_CALLBACK) as here:
        settings = {"KONTROL_TTL": str(ttl), "KONTROL_DAMPER": str(damper), "KONTROL_BRAKE": "0"}
        master = await here.master(**settings)
        survivors = Options(("127.0.0.1",), here.port, others, ttl)
        victims = Options(("127.0.0.1",), here.port, agents, ttl, first=others)
        async with generator(survivors) as staying:
            await staying.join()
            await staying.steady()
            async with generator(victims) as dying:
                await dying.join()
                await dying.steady()
                while json.loads((await here.next_start(damper * 10))[1])[1] < agents + others:
                    pass
                await asyncio.sleep(ttl / 2)  # by now they report as they do later
                killed = time.monotonic()
            starts: list[Any] = []
            limit = ttl + 2 + damper
            while not starts or starts[-1][1] > others:
                starts.append(json.loads((await here.next_start(3 * limit))[1]))
            load = await staying.report()
        await master.end()
    begun, count, first, last, changes = starts[-1]
    seconds = begun - killed
    right = count == others and first + last == ["bench-000000", f"bench-{others - 1:06d}"]
    return [
        Row(
            f"{agents} pods die, to the callback's start",
            f"{seconds:.1f} s",
            f"TTL + 2 s + damper: {limit} s",
            f"{seconds / limit:.2f}",
            goal="under 1",
            values={"agents": agents, "seconds": seconds, "limit_seconds": limit},
        ),
        Row("   callbacks", str(len(starts)), goal="1", values={"callbacks": len(starts)}),
        Row(
            "   its list and changes",
            f"{'right' if right else 'WRONG'}: {count} pods, {changes['lost']} lost",
            f"{others} pods, {agents} lost",
            values={"pods": count, "lost": changes["lost"], "right": right},
        ),
        Row(
            "   late or refused keepalives of the others",
            str(load.late + sum(load.refused.values())),
            values={"late_or_refused": load.late + sum(load.refused.values())},
        ),
    ]
