"""Remote commands: a round trip of `echo`, and one command on two hundred pods.

The pods are servers with executors in one process (`tests.e2e.pods`), on loopback: they share its
guards and this machine's processors. Limits, in the same run: a bare process that does the same,
and a round trip that starts none.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench import Option
from bench.process import resident
from bench.table import Row, milliseconds, quantiles
from kontrol.rpc.client import Client

TITLE = "Remote commands"
OPTIONS = {
    "rounds": Option(300, 20, "round trips"),
    "count": Option(200, 10, "pods of one command"),
}
FAN_OUTS = 5
_WARM_UP = 20
_COMMAND = "echo hi"
_INVOKE = json.dumps({"cmd": _COMMAND})
_EXEC = json.dumps({"argv": ["echo", "hi"]})


@asynccontextmanager
async def pods(count: int) -> AsyncIterator[tuple[int, list[dict[str, Any]]]]:
    """Run pods; yield the id of their process, and their records."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.e2e.pods", str(count)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        limit=1 << 20,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            yield process.pid, json.loads(await process.stdout.readline())
    finally:
        process.terminate()
        await process.wait()


async def measure(work: Callable[[], Awaitable[object]], rounds: int) -> list[float]:
    """Return what each of `rounds` takes, after some that do not count."""
    taken = []
    for _ in range(_WARM_UP + rounds):
        begun = time.perf_counter()
        await work()
        taken.append(time.perf_counter() - begun)
    return taken[_WARM_UP:]


def spawns(rounds: int, *command: str) -> list[float]:
    """Return what each of `rounds` bare processes takes."""
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        subprocess.run(command, stdout=subprocess.PIPE, check=True)
        taken.append(time.perf_counter() - begun)
    return taken


def guards_of(pid: int) -> list[int]:
    """Return the ids of the children of a process."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in text.split()]


async def round_trips(rounds: int) -> list[Row]:
    """Measure one caller and one pod, one call after another."""
    async with pods(1) as (pid, [pod]), Client("127.0.0.1", pod["port"]) as client:

        async def rpc() -> object:
            return await client.call("_zerorpc_ping", timeout=10)

        async def invoke() -> object:
            return await client.call("invoke", _INVOKE, timeout=10)

        async def execute() -> object:
            return [item async for item in client.stream("exec", _EXEC, timeout=10)]

        await rpc()
        idle = resident(pid)
        begun = time.perf_counter()
        await invoke()
        first = time.perf_counter() - begun
        bare, echo = spawns(rounds, "/bin/sh", "-c", _COMMAND), await measure(rpc, rounds)
        invoked, executed = await measure(invoke, rounds), await measure(execute, rounds)
        [guard] = guards_of(pid)
        memory = resident(pid), resident(guard)
    limit = statistics.median(bare) + statistics.median(echo)
    return [
        Row(
            "invoke echo, round trip",
            milliseconds(invoked),
            f"bare process {milliseconds(bare)}",
            f"{statistics.median(invoked) / limit:.1f} x process + call",
            "506 ms",
            values={**quantiles("invoke", invoked), **quantiles("process", bare)},
        ),
        Row(
            "exec echo, streamed",
            milliseconds(executed),
            f"bare call {milliseconds(echo)}",
            f"{statistics.median(executed) / limit:.1f} x process + call",
            values={**quantiles("exec", executed), **quantiles("call", echo)},
        ),
        Row(
            "   the first of all, which starts a guard",
            f"{1000 * first:.1f} ms",
            values={"first_ms": 1000 * first},
        ),
        Row(
            "resident memory, a process that serves commands",
            f"{memory[0]:.1f} MB",
            f"{idle:.1f} MB before the first",
            values={"resident_mb": memory[0], "idle_resident_mb": idle},
        ),
        Row(
            "   its guard, for 30 s after a command",
            f"{memory[1]:.1f} MB",
            values={"guard_resident_mb": memory[1]},
        ),
    ]


async def fan_out(count: int) -> Row:
    """Measure `kontrol invoke --all -- true`, from its start to its end."""
    async with pods(count) as (_, records):
        taken = []
        environ = {**os.environ, "KONTROL_MASTER": f"127.0.0.1:{records[0]['port']}"}
        for _ in range(FAN_OUTS):
            begun = time.perf_counter()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "kontrol", "invoke", "--all", "--", "true"), env=environ
            )
            if await process.wait():
                raise RuntimeError("a pod failed")
            taken.append(time.perf_counter() - begun)
    limit = sum(spawns(count, "true"))
    return Row(
        f"kontrol invoke --all -- true, {count} pods of one process",
        f"p50 {statistics.median(taken):.2f} s, most {max(taken):.2f} s (n={len(taken)})",
        f"{count} bare processes {limit:.2f} s",
        f"{statistics.median(taken) / limit:.1f} x",
        values={"pods": count, "fan_out_p50_ms": 1000 * statistics.median(taken)},
    )


async def run(*, rounds: int, count: int) -> list[Row]:
    """Measure."""
    return [*await round_trips(rounds), await fan_out(count)]
