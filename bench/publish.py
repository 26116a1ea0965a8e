"""What a run publishes, from its commit to the files of all agents.

The callback of a real master publishes a document over and over. Agents are many in one process,
each with a connection and a file of its own, and the code of a real one (`bench.follower`). The
time counts from the answer to the callback, which follows the commit in etcd, to the replacement
of a file, on a tmpfs if there is one. Beside it: what the same files take that process without any
master. On one machine, masters and agents share the processors; on their own, agents do this at
the same time.
"""

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import Option
from bench.process import Meter
from bench.stage import stage
from bench.table import Row, milliseconds, quantiles

TITLE = "Publishing, etcd with fsync"
OPTIONS = {
    "agents": Option(1000, 100, "agents that follow, all on one master"),
    "size": Option(1000, 1000, "bytes of the document"),
    "rounds": Option(20, 5, "versions"),
}
# As /run is, where such files are: a disk is waited for.
_TMPFS = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
GOAL = 0.2  # seconds from the commit to the last of 1,000

_CALLBACK = f"""#!{sys.executable} -IS
import json, os, socket, time
out = open("FIFO", "w")
print("ready", file=out, flush=True)
for line in open("FIFO.commands"):
    with socket.socket(socket.AF_UNIX) as master:
        master.connect(os.environ["RUN_SOCKET"])
        begun = time.monotonic()
        master.sendall(b'{{"publish": "bench"}}\\n' + line.encode())
        master.shutdown(socket.SHUT_WR)
        answer = json.loads(master.makefile().readline())
    print(json.dumps([begun, time.monotonic(), answer["version"]]), file=out, flush=True)
"""


async def run(*, agents: int, size: int, rounds: int) -> list[Row]:
    """Measure."""
    async with stage(_CALLBACK) as here:
        os.mkfifo(here.folder / "started.commands")
        commands = os.open(here.folder / "started.commands", os.O_RDWR)
        master = await here.master()
        await here.daemon("a", KONTROL_MODE="agent")
        assert (await here.next_start())[1] == "ready"
        folder = tempfile.mkdtemp(prefix="kontrol-bench-", dir=_TMPFS)
        follower = await _follower(folder, here.port, agents, size)
        assert follower.stdout is not None
        alone: float = json.loads(await follower.stdout.readline())["alone"]
        commits, firsts, medians, lasts = [], [], [], []
        meter = None
        for number in range(rounds + 1):
            document = json.dumps(f"{number:04}" + "x" * (size - 6))
            os.write(commands, document.encode() + b"\n")
            begun, done, version = json.loads((await here.next_start())[1])
            while True:
                seen = json.loads(await asyncio.wait_for(follower.stdout.readline(), 60))
                if seen["version"] == version:
                    break
            first, median, last = (at - done for at in seen["times"])
            if meter is None:  # the first one waits for the connections
                meter = Meter(master=master.pid, agents=follower.pid)
                continue
            commits.append(done - begun)
            firsts.append(first)
            medians.append(median)
            lasts.append(last)
        assert meter is not None
        spent = meter.read()
        follower.kill()
        await follower.wait()
        os.close(commands)
        shutil.rmtree(folder)
    each = agents * rounds / 1000  # thousands
    return [
        Row(
            f"commit to the last of {agents} files, {size} bytes",
            milliseconds(lasts),
            f"the files alone {1000 * alone:.0f} ms",
            f"{statistics.median(lasts) / alone:.1f}",
            goal=f"{1000 * GOAL:.0f} ms",
            values={**quantiles("last", lasts), "alone_ms": 1000 * alone, "agents": agents},
        ),
        Row(
            "   to the median one, and the first",
            " and ".join(f"{1000 * statistics.median(x):.1f} ms" for x in (medians, firsts)),
            values=quantiles("median", medians) | quantiles("first", firsts),
        ),
        Row("   the callback's request to its answer", milliseconds(commits)),
        Row(
            "   CPU for 1,000 agents: master, agents",
            f"{1000 * spent['master'] / each:.0f} ms, {1000 * spent['agents'] / each:.0f} ms",
            values={
                "master_cpu_ms": 1000 * spent["master"] / each,
                "agents_cpu_ms": 1000 * spent["agents"] / each,
            },
        ),
    ]


async def _follower(files: str, port: int, agents: int, size: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.follower"),
        *("127.0.0.1", str(port), str(agents), files, str(size)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
