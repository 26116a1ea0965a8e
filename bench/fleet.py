"""What a number of agents costs one master: CPU, memory, and whether any of them is lost.

Each agent reports as a real one does, with the TTL of 25 s (`bench.agents`). A row for each number
of agents. `--plot FILE` draws them, as SVG.
"""

import asyncio
from pathlib import Path

from bench import Option, report
from bench.generator import Options
from bench.load import generator
from bench.plot import fleet as draw
from bench.process import Meter, resident, threads
from bench.stage import QUIET, TTL, most_agents, stage
from bench.table import Row

TITLE = "Agents on one master, TTL 25, etcd with fsync"
OPTIONS = {
    "agents": Option((1000, 5000, 10000, 15000, 20000), (100,), "numbers of agents"),
    "minutes": Option(2.0, 0.2, "how long each number of agents reports"),
    "plot": Option("", "", "a file for a plot of CPU and memory, as SVG"),
}
_SETTLE = 10.0  # seconds after the joins: what they left to do is done


async def run(*, agents: tuple[int, ...], minutes: float, plot: str) -> list[Row]:
    """Measure. Raises `OSError` before that if the plot cannot be written."""
    if plot:
        report.prepare(Path(plot))
    rows = []
    for number in agents:
        rows.append(await _one(most_agents(number), minutes))
        print(f"{rows[-1].what}: {rows[-1].figure}", flush=True)
    if plot:
        _write(Path(plot), draw([row.values for row in rows]))
    return rows


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


async def _one(agents: int, minutes: float) -> Row:
    async with stage() as here:
        master = await here.master(**QUIET)
        async with generator(Options(("127.0.0.1",), here.port, agents, TTL)) as load:
            await load.join()
            await load.steady()
            await asyncio.sleep(min(_SETTLE, 60 * minutes))
            before = await here.pods()
            await load.report()
            meter = Meter(master=master.pid, etcd=here.etcd_pid, generator=load.pid)
            await asyncio.sleep(60 * minutes)
            got, spent = await load.report(), meter.read()
            memory, number = resident(master.pid), threads(master.pid)
            after = await here.pods()
        await master.end()
    lost = sum(after.get(key) != revision for key, revision in before.items())
    lost += agents - len(before)
    share = {name: 100 * seconds / got.seconds for name, seconds in spent.items()}
    refused = sum(got.refused.values())
    each = 1000 * spent["master"] / max(1, got.acknowledged)
    return Row(
        f"{agents} agents, for {minutes:g} min",
        f"CPU {share['master']:.1f} %, {memory:.0f} MB, {lost} lost, {refused} refused,"
        f" {got.late} late",
        f"etcd's CPU {share['etcd']:.1f} %, generator's {share['generator']:.1f} %",
        f"{each:.2f} ms each, p99 {1000 * got.p99:.0f} ms",
        goal="20,000: under 50 %, 300 MB, none lost",
        values={
            "agents": agents,
            "master_cpu": share["master"],
            "etcd_cpu": share["etcd"],
            "generator_cpu": share["generator"],
            "master_cpu_ms": each,
            "resident_mb": memory,
            "threads": number,
            "lost": lost,
            "acknowledged": got.acknowledged,
            "refused": refused,
            "late": got.late,
            "p50_ms": 1000 * got.p50,
            "p99_ms": 1000 * got.p99,
        },
    )
