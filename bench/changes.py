"""A change on a pod to the callback's start, without a damper; a pod that leaves or is killed.

One master and one agent, real processes on loopback. The limit is what cannot be saved: to start a
process, and to have etcd report a change.
"""

import asyncio
import json
import signal
import statistics
import subprocess
import time

from bench import Option
from bench.stage import Stage, stage
from bench.table import Row, milliseconds, quantiles
from kontrol.store.embedded import embedded_etcd
from kontrol.store.etcd import EtcdConfig, EtcdStore
from kontrol.store.protocol import Put

TITLE = "A change to the callback's start, damper 0, etcd with fsync"
OPTIONS = {"rounds": Option(100, 10, "changes; leaves are a tenth of it, kills a twentieth")}
SHORT = 3  # seconds of TTL where pods are killed


async def run(*, rounds: int) -> list[Row]:
    """Measure."""
    async with stage() as here:
        changes, leaves = await _changes_and_leaves(here, rounds)
    async with stage() as here:
        kills = await _kills(here, rounds)
    spawn = await _spawns(rounds)
    watch = await _puts_to_watch(rounds)
    least = statistics.median(spawn) + statistics.median(watch)
    return [
        Row(
            "payload change to callback start",
            milliseconds(changes),
            f"spawn {milliseconds(spawn)}; put to watch {milliseconds(watch)}",
            f"{statistics.median(changes) / least:.1f} x spawn + watch",
            "1.15 s (0.56-1.59)",
            "3 x; p99 under 30 ms",
            {
                **quantiles("change", changes),
                **quantiles("spawn", spawn),
                **quantiles("watch", watch),
                "change_to_limit_ratio": statistics.median(changes) / least,
            },
        ),
        Row(
            "graceful leave to callback start",
            milliseconds(leaves),
            "",
            f"{statistics.median(leaves) / least:.1f} x spawn + watch",
            "5.5 s",
            values=quantiles("leave", leaves),
        ),
        Row(
            "kill to the urgent run's start, damper 10 s",
            milliseconds(kills),
            f"TTL {SHORT} s, less what has passed since the last keepalive",
            f"{statistics.median(kills) / SHORT:.2f} x TTL",
            values=quantiles("kill", kills),
        ),
    ]


async def _changes_and_leaves(here: Stage, rounds: int) -> tuple[list[float], list[float]]:
    """Return seconds from changes of a payload, and from leaves, to the callback's start."""
    payload = here.folder / "payload.json"
    payload.write_text('"0"', encoding="utf-8")
    master = await here.master()
    agent = await here.daemon("a1", host="127.0.0.11", KONTROL_PAYLOAD=str(payload))
    await here.next_start()
    await master.until("acknowledged")
    changes = []
    for number in range(rounds):
        await asyncio.sleep(0.1)  # changes that follow each other closely are one burst
        fresh = here.folder / "fresh"
        fresh.write_text(json.dumps(str(number + 1)), encoding="utf-8")
        begun = time.monotonic()
        fresh.replace(payload)
        changes.append((await here.next_start())[0] - begun)
        await master.until("acknowledged")
    await agent.end()
    await here.next_start()
    await master.until("acknowledged")
    leaves = []
    for number in range(max(5, rounds // 10)):
        agent = await here.daemon(f"b{number}", host="127.0.0.12")
        await here.next_start()
        await master.until("acknowledged")
        begun = await agent.end()
        leaves.append((await here.next_start())[0] - begun)
        await master.until("acknowledged")
    await master.end()
    return changes, leaves


async def _kills(here: Stage, rounds: int) -> list[float]:
    """Return seconds from SIGKILL of an agent to the start of the run that tells of its loss."""
    ttl = {"KONTROL_TTL": str(SHORT)}
    master = await here.master(KONTROL_DAMPER="10", KONTROL_URGENT="lost,joined", **ttl)
    for number in range(3):  # they stay: one that is lost of few would be held by the brake
        await here.daemon(f"a{number}", host=f"127.0.0.{number + 11}", **ttl)
        await here.next_start()
        await master.until("acknowledged")
    await asyncio.sleep(SHORT)  # the time after a leader's start in which losses are not told
    kills = []
    for number in range(max(2, rounds // 20)):
        agent = await here.daemon(f"b{number}", host="127.0.0.20", **ttl)
        await here.next_start()
        await master.until("acknowledged")
        begun = await agent.end(signal.SIGKILL)
        kills.append((await here.next_start())[0] - begun)
        await master.until("acknowledged")
    await master.end()
    return kills


async def _spawns(rounds: int) -> list[float]:
    """Time from starting a shell to its first line."""
    times = []
    for _ in range(rounds):
        begun = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", "echo", stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        await process.stdout.readline()
        times.append(time.monotonic() - begun)
        await process.wait()
    return times


async def _puts_to_watch(rounds: int) -> list[float]:
    """Time from a put to the watch's event, on an etcd of its own that syncs its disk."""
    async with embedded_etcd() as endpoints, EtcdStore(EtcdConfig(tuple(endpoints))) as store:
        header = (await store.txn([], [Put("bench", b"")])).header
        times = []
        async with store.watch("bench", start=header.revision + 1) as watch:
            events = aiter(watch)
            for _ in range(rounds):
                begun = time.monotonic()
                await store.txn([], [Put("bench", b"x")])
                while not (await anext(events)).events:
                    pass
                times.append(time.monotonic() - begun)
        return times
