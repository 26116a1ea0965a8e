"""Memory, threads and idle CPU: agents without and with REST and keys, and a master.

The daemons run side by side and are left alone for a while, each agent reporting every 8 s. The
limit is an interpreter with asyncio, and with what an agent cannot do without.
"""

import asyncio
import subprocess
import sys
from pathlib import Path

from bench import Option
from bench.process import Meter, resident, status, threads
from bench.stage import Daemon, Stage, free_port, stage
from bench.table import Row

TITLE = "What idle daemons cost"
OPTIONS = {"seconds": Option(60.0, 3.0, "how long they are left alone")}
_GOALS = {
    "agent": "21 MB, 1 thread, 0.1 %",
    "agent with REST": "22 MB, 1 thread, 0.1 %",
    "agent with keys": "26 MB, 1 thread, 0.1 %",
    "master": "36 MB",
}


async def run(*, seconds: float) -> list[Row]:
    """Measure."""
    rows = await _plain(seconds)
    rows += await _keyed(seconds)
    return rows


async def _plain(seconds: float) -> list[Row]:
    async with stage() as here:
        master = await here.master()
        port = str(free_port())
        agents = {
            "agent": await here.daemon("a1", "127.0.0.11"),
            "agent with REST": await here.daemon("a2", "127.0.0.12", KONTROL_HTTP_PORT=port),
        }
        for agent in agents.values():
            await agent.until("reporting to")
        rows = await _costs({**agents, "master": master}, seconds)
        for daemon in (*agents.values(), master):
            await daemon.end()
    return rows


async def _keyed(seconds: float) -> list[Row]:
    async with stage() as here:
        keys = await _keys(here)
        master = await here.master(KONTROL_KEYS=str(keys))
        agent = await here.daemon("a1", "127.0.0.11", KONTROL_KEYS=str(keys), KONTROL_INVOKE="off")
        await agent.until("reporting to")
        rows = await _costs({"agent with keys": agent, "master with keys": master}, seconds)
        for daemon in (agent, master):
            await daemon.end()
    return rows


async def _keys(here: Stage) -> Path:
    """Make keys of all kinds; returns their folder."""
    folder = here.folder / "keys"
    command = (sys.executable, "-m", "kontrol", "keys", "make", str(folder))
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL)
    if await process.wait():
        raise RuntimeError("`kontrol keys make` failed")
    return folder


async def _costs(daemons: dict[str, Daemon], seconds: float) -> list[Row]:
    """Measure daemons that are left alone."""
    await asyncio.sleep(min(2.0, seconds))  # what their start left to do is done
    pids = {name: daemon.pid for name, daemon in daemons.items()}
    switches = {name: status(pid, "ctxt_switches") for name, pid in pids.items()}
    meter = Meter(**pids)
    await asyncio.sleep(seconds)
    spent = meter.read()
    rows = []
    for name, pid in pids.items():
        woken = (status(pid, "ctxt_switches") - switches[name]) / seconds
        share = 100 * spent[name] / seconds
        bare = _bare("asyncio, msgpack") if "agent" in name else _bare("asyncio")
        memory, number = resident(pid), threads(pid)
        key = name.replace(" ", "_").lower()
        rows.append(
            Row(
                name,
                f"{memory:.1f} MB, threads {number}, CPU {share:.2f} %, {woken:.1f} switches/s",
                f"{bare:.1f} MB with asyncio{' and msgpack' if 'agent' in name else ''}",
                f"{memory / bare:.2f}",
                "38 MB, 0.8-1.7 %",
                _GOALS.get(name, ""),
                {
                    f"{key}_resident_mb": memory,
                    f"{key}_threads": number,
                    f"{key}_idle_cpu": share,
                    f"{key}_switches_per_s": woken,
                },
            )
        )
    return rows


def _bare(modules: str) -> float:
    """Return MB resident of an interpreter that imports `modules`."""
    code = (
        f"import {modules}\n"
        "print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmRSS')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(out.stdout) / 1024
