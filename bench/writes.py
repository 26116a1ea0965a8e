"""New pods and changed records per second, one master, and its CPU for each.

The load is that of `keepalives`. The limit is what the store's client writes alone, in the same
run: one put of a record in a transaction of its own.
"""

from bench import Option
from bench.generator import Load, Options
from bench.limits import Limit, limit
from bench.load import generator
from bench.process import Meter
from bench.stage import QUIET, stage
from bench.table import Row

TITLE = "New pods and changed records, one master, etcd with fsync"
OPTIONS = {
    "agents": Option(5000, 100, "agents, which all are new pods at first"),
    "under_way": Option(256, 32, "keepalives under way at a time"),
    "seconds": Option(6.0, 1.0, "how long to change records, and how long to measure the limit"),
}


async def run(*, agents: int, under_way: int, seconds: float) -> list[Row]:
    """Measure."""
    async with stage() as here:
        master = await here.master(**QUIET)
        async with generator(Options(("127.0.0.1",), here.port, agents)) as load:
            meter = Meter(master=master.pid, etcd=here.etcd_pid)
            joined = await load.join(under_way=under_way)
            joining = meter.read()
            changed = await load.loop(under_way=under_way, seconds=seconds, change=True)
            changing = meter.read()
        await master.end()
        bare = await limit("put", here.etcd, under_way, seconds / 2)
    return [
        *_rows(("new pods", "joined"), joined, joining, bare, "3,000/s"),
        *_rows(("changed records", "changed"), changed, changing, bare, "4,000/s"),
    ]


def _rows(
    names: tuple[str, str], load: Load, spent: dict[str, float], bare: Limit, goal: str
) -> list[Row]:
    what, name = names
    cpu = {process: 1000 * seconds / load.acknowledged for process, seconds in spent.items()}
    refused = sum(load.refused.values())
    return [
        Row(
            f"{what} per second",
            f"{load.rate:.0f}/s",
            f"puts, this client: {bare.rate:.0f}/s",
            f"{load.rate / bare.rate:.2f}",
            goal=goal,
            values={f"{name}_per_s": load.rate, "puts_per_s": bare.rate},
        ),
        Row(
            "   master's CPU for each",
            f"{cpu['master']:.3f} ms; etcd's {cpu['etcd']:.3f} ms",
            f"the client's for a put: {bare.cpu_ms:.3f} ms",
            f"{cpu['master'] / bare.cpu_ms:.1f}",
            values={f"{name}_master_cpu_ms": cpu["master"], f"{name}_etcd_cpu_ms": cpu["etcd"]},
        ),
        Row(
            "   time to the acknowledgement",
            f"p50 {1000 * load.p50:.1f} ms, p99 {1000 * load.p99:.1f} ms",
            f"{refused} refused, {load.late} late",
            values={
                f"{name}_p50_ms": 1000 * load.p50,
                f"{name}_p99_ms": 1000 * load.p99,
                f"{name}_refused": refused,
                f"{name}_late": load.late,
            },
        ),
    ]
