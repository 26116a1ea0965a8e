"""Commands, from their start to their end: callbacks start them, so they are to be quick.

The pod of `kontrol invoke` is a server with an executor in a process of its own
(`tests.e2e.pods`). The limit is an interpreter that does nothing.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import Option
from bench.invoke import pods
from bench.table import Row, milliseconds, quantiles

TITLE = "Commands, whole"
OPTIONS = {"rounds": Option(50, 5, "how often each is started")}
_KONTROL = str(Path(sys.executable).parent / "kontrol")


async def run(*, rounds: int) -> list[Row]:
    """Measure."""
    bare = times((sys.executable, "-c", "pass"), rounds)
    version = times((_KONTROL, "--version"), rounds)
    async with pods(1) as (_, [pod]):
        environ = {**os.environ, "KONTROL_MASTER": f"127.0.0.1:{pod['port']}"}
        invoke = times((_KONTROL, "invoke", "--all", "--", "true"), rounds, environ)
    return [
        _row("kontrol --version", "version", version, bare, "under 60 ms"),
        _row("kontrol invoke of true, one pod", "invoke", invoke, bare, "under 150 ms"),
    ]


Times = tuple[list[float], list[float]]
"""Seconds of wall time, and of CPU, for each round."""


def times(command: Sequence[str], rounds: int, environ: Mapping[str, str] | None = None) -> Times:
    """Run a command some times; one more before does not count."""
    walls, cpus = [], []
    for _ in range(1 + rounds):
        begun = time.perf_counter()
        process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        walls.append(time.perf_counter() - begun)
        cpus.append(used.ru_utime + used.ru_stime)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{command[0]} ended with status {process.returncode}")
    return walls[1:], cpus[1:]


def _row(what: str, name: str, measured: Times, bare: Times, goal: str) -> Row:
    (walls, cpus), (least, _) = measured, bare
    cpu = 1000 * statistics.median(cpus)
    return Row(
        what,
        f"{milliseconds(walls)}; CPU {cpu:.0f} ms",
        f"python -c pass: {milliseconds(least)}",
        f"{statistics.median(walls) / statistics.median(least):.1f}",
        goal=goal,
        values={**quantiles(name, walls), f"{name}_cpu_ms": cpu, **quantiles("python", least)},
    )
