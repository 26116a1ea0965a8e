"""The agents of a master that dies, until all of them are acknowledged again.

Two masters, and agents that all report to the first. That one, the leader, is killed. The agents
look for another as real ones do, by the same code: each notices it with its next keepalive, fails
to connect, waits a random time, and goes to the other address (`bench.agents`).

With `--outage`, there is one master, which is killed and started again after that many seconds. By
then all agents have noticed, and try again within TTL/8: they return in a third of the time.

With `--share`, the master to which they come is held to that share of a core.
"""

import asyncio
import signal
import time

from bench import Option
from bench.generator import Options
from bench.load import generator
from bench.process import Meter, held_to, resident
from bench.stage import QUIET, TTL, Daemon, Stage, most_agents, stage
from bench.table import Row

TITLE = "Fail-over of a crowd, TTL 25, etcd with fsync"
OPTIONS = {
    "agents": Option(5000, 100, "agents, all on one master"),
    "after": Option(20.0, 2.0, "seconds that they report before it is killed"),
    "within": Option(120.0, 30.0, "seconds at most until all are acknowledged"),
    "stop": Option(0, 0, "1: SIGSTOP instead of SIGKILL, so that connections stay open"),
    "outage": Option(0.0, 0.0, "seconds without any master, instead of another master"),
    "share": Option(0.0, 0.0, "of a core that the other master gets; 0: what it wants"),
}
_A, _B = "127.0.0.1", "127.0.0.2"
_BUFFERED = 0.1  # seconds in which the generator reads what the first master still sent


async def run(
    *, agents: int, after: float, within: float, stop: int, outage: float, share: float
) -> list[Row]:
    """Measure."""
    agents = most_agents(agents)
    async with stage() as here:
        first = await here.master("m1", _A, **QUIET)
        standby = None if outage else await _standby(here)
        hosts = (_A,) if outage else (_A, _B)
        async with generator(Options(hosts, here.port, agents, TTL)) as load:
            await load.join()
            await load.steady()
            await asyncio.sleep(after)
            before = await here.pods()
            at_rest = await load.report()
            await first.end(signal.SIGSTOP if stop else signal.SIGKILL)
            began = time.monotonic()
            await asyncio.sleep(_BUFFERED)
            await load.mark()
            if standby is None:
                second = await _successor(here, outage)
                began = time.monotonic()
                await load.report()
            else:
                second = standby
            async with held_to(second.pid, share):
                meter = Meter(master=second.pid)
                got = await load.until(within=within)
                spent, memory = meter.read(), resident(second.pid)
                await asyncio.sleep(TTL + 2)  # what was lost is gone by then
                following = await load.report()
            after_all = await here.pods()
        await second.end()
    lost = sum(after_all.get(key) != revision for key, revision in before.items())
    seconds = got.ended - began
    longest = TTL / 8 if outage else TTL / 3
    refused = sum(got.refused.values())
    named = ", ".join(f"{name} {count}" for name, count in sorted(got.refused.items()))
    return [
        Row(
            f"{agents} agents, until all are acknowledged",
            f"{seconds:.1f} s" if not got.left else f"{got.left} are not after {seconds:.0f} s",
            f"longest wait of an agent: {longest:.1f} s",
            f"{seconds / longest:.1f}",
            goal="none lost",
            values={
                "agents": agents,
                "seconds": seconds,
                "unacknowledged": got.left,
            },
        ),
        Row(
            "   pods lost",
            str(lost),
            f"{len(before)} lived before; {at_rest.late + sum(at_rest.refused.values())} late or"
            " refused",
            values={"lost": lost, "lived_before": len(before), "late_before": at_rest.late},
        ),
        Row(
            "   highest rate of acknowledgements",
            f"{got.peak:.0f}/s",
            f"on average {got.acknowledged / seconds:.0f}/s",
            values={"peak_per_s": got.peak},
        ),
        Row(
            "   time to the acknowledgement, connecting included",
            f"p50 {1000 * got.p50:.0f} ms, p99 {1000 * got.p99:.0f} ms,"
            f" most {1000 * got.most:.0f} ms",
            f"an attempt: {min(TTL / 6, 5):.1f} s",
            values={"p50_ms": 1000 * got.p50, "p99_ms": 1000 * got.p99, "most_ms": 1000 * got.most},
        ),
        Row(
            "   attempts late; connections broken",
            f"{got.late}; {got.broken}",
            values={"late": got.late, "broken": got.broken},
        ),
        Row("   refused", named or "0", values={"refused": refused}),
        Row(
            "   late or refused in the TTL after that",
            f"{following.late + sum(following.refused.values())}",
            values={"following": following.late + sum(following.refused.values())},
        ),
        Row(
            "   the other master's CPU for each acknowledgement",
            f"{1000 * spent['master'] / max(1, got.acknowledged):.2f} ms",
            f"{memory:.0f} MB resident",
            values={
                "master_cpu_ms": 1000 * spent["master"] / max(1, got.acknowledged),
                "resident_mb": memory,
            },
        ),
    ]


async def _standby(here: Stage) -> Daemon:
    """Start another master."""
    made = await here.daemon("m2", _B, KONTROL_MODE="master", **QUIET)
    await made.until("candidate, behind")
    return made


async def _successor(here: Stage, outage: float) -> Daemon:
    """Start a master in the place of the one that is gone, and wait until it listens."""
    await asyncio.sleep(outage)
    made = await here.daemon("m2", _A, KONTROL_MODE="master", **QUIET)
    while True:
        try:
            _, writer = await asyncio.open_connection(_A, here.port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.01)
        else:
            writer.close()
            return made
