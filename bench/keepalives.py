"""Acknowledged keepalives that say nothing new: how many one master takes, and its CPU for each.

The load is a generator with a connection for each agent (`bench.agents`), in a closed loop. The
limit is what the store's client reaches alone, in the same run: one lease refresh for each.
"""

from bench import Option
from bench.generator import Options
from bench.limits import limit
from bench.load import generator
from bench.process import Meter, resident
from bench.stage import QUIET, stage
from bench.table import Row

TITLE = "Keepalives that say nothing new, one master, etcd with fsync"
OPTIONS = {
    "agents": Option(1000, 50, "agents, each with a connection of its own"),
    "under_way": Option(128, 16, "keepalives under way at a time"),
    "seconds": Option(6.0, 1.0, "how long to send, and how long to measure the limit"),
}


async def run(*, agents: int, under_way: int, seconds: float) -> list[Row]:
    """Measure."""
    async with stage() as here:
        master = await here.master(**QUIET)
        async with generator(Options(("127.0.0.1",), here.port, agents)) as load:
            await load.join(under_way=under_way)
            await load.loop(under_way=under_way, seconds=seconds / 4)
            meter = Meter(master=master.pid, etcd=here.etcd_pid, generator=load.pid)
            got = await load.loop(under_way=under_way, seconds=seconds)
            spent = {name: 1000 * cpu / got.acknowledged for name, cpu in meter.read().items()}
        memory = resident(master.pid)
        await master.end()
        bare = await limit("refresh", here.etcd, under_way, seconds / 2)
    return [
        Row(
            "master's CPU for each",
            f"{spent['master']:.3f} ms",
            f"the client's for a lease refresh: {bare.cpu_ms:.3f} ms",
            f"{spent['master'] / bare.cpu_ms:.1f}",
            goal="under 0.08 ms",
            values={"master_cpu_ms": spent["master"], "refresh_cpu_ms": bare.cpu_ms},
        ),
        Row(
            "acknowledged per second",
            f"{got.rate:.0f}/s",
            f"lease refreshes, this client: {bare.rate:.0f}/s",
            f"{got.rate / bare.rate:.2f}",
            "308/s",
            "10,000/s; over 0.6",
            {
                "acknowledged_per_s": got.rate,
                "refreshes_per_s": bare.rate,
                "acknowledged_to_refreshes_ratio": got.rate / bare.rate,
            },
        ),
        Row(
            "time to the acknowledgement",
            f"p50 {1000 * got.p50:.1f} ms, p99 {1000 * got.p99:.1f} ms",
            f"{under_way} under way",
            values={"p50_ms": 1000 * got.p50, "p99_ms": 1000 * got.p99},
        ),
        Row(
            "refused, late, broken connections",
            f"{sum(got.refused.values())}, {got.late}, {got.broken}",
            values={"refused": sum(got.refused.values()), "late": got.late, "broken": got.broken},
        ),
        Row(
            "others' CPU for each",
            f"etcd {spent['etcd']:.3f} ms, generator {spent['generator']:.3f} ms",
            values={"etcd_cpu_ms": spent["etcd"], "generator_cpu_ms": spent["generator"]},
        ),
        Row(
            f"master's resident memory, {agents} pods",
            f"{memory:.1f} MB",
            values={"resident_mb": memory},
        ),
    ]
