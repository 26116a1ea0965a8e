"""Fail-overs of a Redis primary, by Kontrol as in `examples/redis` and by Redis Sentinel.

Both keep servers of the same settings, in network namespaces, while clients write to every server
all the time. Needs root, `redis-server` and `ip`. All faults take a quarter of an hour.
"""

import asyncio
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import Option
from bench.network import network
from bench.redis_tiers import DEADLINE, Ensemble, kontrol, sentinel
from bench.redis_writes import Writers, ask, both_writable, longest_pause
from bench.table import Row

TITLE = "Fail-over of a Redis primary"
AWAY = 10.0  # seconds for which a pod is frozen or cut off
STEADY = 50  # acknowledged writes before a fault, and after everything is well again


async def _kill_pod(ensemble: Ensemble, pod: str) -> None:
    await ensemble.pods[pod].signal(signal.SIGKILL)


async def _kill_server(ensemble: Ensemble, pod: str) -> None:
    await ensemble.kill_server(pod)


async def _stop(ensemble: Ensemble, pod: str) -> None:
    await ensemble.stop_pod(pod)


async def _freeze(ensemble: Ensemble, pod: str) -> None:
    await ensemble.pods[pod].signal(signal.SIGSTOP)


async def _cut(ensemble: Ensemble, pod: str) -> None:
    await ensemble.pods[pod].link("down")


async def _cut_from_masters(ensemble: Ensemble, pod: str) -> None:
    await ensemble.pods[pod].reach(ensemble.network.hosts, reachable=False)


async def _kill_leader(ensemble: Ensemble, pod: str) -> None:
    await _kill_pod(ensemble, pod)
    await ensemble.kill_leader()


async def _wake(ensemble: Ensemble, pod: str) -> None:
    await ensemble.pods[pod].signal(signal.SIGCONT)


async def _join(ensemble: Ensemble, pod: str) -> None:
    await ensemble.pods[pod].link("up")


async def _join_masters(ensemble: Ensemble, pod: str) -> None:
    await ensemble.pods[pod].reach(ensemble.network.hosts, reachable=True)


Act = Callable[[Ensemble, str], Coroutine[None, None, None]]
ENDS: Mapping[str, Act] = {"freeze": _wake, "cut": _join, "masters": _join_masters}
"""How faults end that last for a while."""
FAULTS: Mapping[str, tuple[str, Act]] = {
    "kill": ("kill of the pod", _kill_pod),
    "process": ("kill of the process alone", _kill_server),
    "stop": ("graceful stop", _stop),
    "freeze": ("SIGSTOP of the pod", _freeze),
    "cut": ("partition", _cut),
    "masters": ("partition from masters or Sentinels alone", _cut_from_masters),
    "leader": ("kill of the pod, and of the leader in its run", _kill_leader),
}
OPTIONS = {
    "rounds": Option(4, 1, "fail-overs by each fault"),
    "faults": Option(",".join(FAULTS), "kill", "comma list of faults"),
    "pods": Option(3, 3, "servers"),
}


@dataclass(frozen=True, slots=True)
class FailOver:
    """What clients saw of one: after how many `seconds` another server took a write.

    `pause` is the longest time without an acknowledged write, `both` the time in which two servers
    took writes, both in seconds. `lost` counts acknowledged writes that the new primary lacks.
    """

    seconds: float
    pause: float
    both: float
    acknowledged: int
    lost: int


async def fail_over(ensemble: Ensemble, fault: str, name: str, away: float = AWAY) -> FailOver:
    """Do one fault to the primary, for `away` seconds if it ends, and see all well again.

    Clients write into the set `name`.
    """
    old = await ensemble.healthy()
    async with asyncio.timeout(2 * DEADLINE), Writers(ensemble.sockets, name) as writers:
        await writers.acknowledged(STEADY)
        begun = time.monotonic()
        acting = asyncio.create_task(FAULTS[fault][1](ensemble, old))
        new = await writers.taken(begun, other_than=old)
        await acting
        if fault in ENDS:
            await asyncio.sleep(begun + away - time.monotonic())
            await ENDS[fault](ensemble, old)
        elif fault == "stop":
            await ensemble.stopped(old)
        await ensemble.restore()
        primary = await ensemble.healthy()
        await writers.acknowledged(STEADY)
    kept = await ask(ensemble.sockets[primary], "SMEMBERS", name)
    acknowledged = {write.member: write for write in writers.writes if write.acknowledged}
    return FailOver(
        seconds=new.taken - begun,
        pause=longest_pause(list(acknowledged.values()), begun),
        both=both_writable(writers.writes),
        acknowledged=len(acknowledged),
        lost=len(acknowledged.keys() - set(kept)),
    )


async def run(*, rounds: int, faults: str, pods: int) -> list[Row]:
    """Measure."""
    seen: dict[str, dict[str, list[FailOver]]] = {}
    for made in (kontrol, sentinel):
        with tempfile.TemporaryDirectory(prefix="kontrol-bench-") as folder:
            async with network(pods, 3) as net, made(Path(folder), net) as ensemble:
                found = seen.setdefault(ensemble.name, {})
                for fault in faults.split(","):
                    found[fault] = [
                        await fail_over(ensemble, fault, f"{fault}-{number}")
                        for number in range(rounds)
                    ]
    return rows(seen["Kontrol"], seen["Sentinel"])


def rows(ours: Mapping[str, list[FailOver]], theirs: Mapping[str, list[FailOver]]) -> list[Row]:
    """Return the table."""
    made = []
    for fault, found in ours.items():
        mine, other = ([each.seconds for each in side] for side in (found, theirs[fault]))
        pause, other_pause = ([each.pause for each in side] for side in (found, theirs[fault]))
        both, other_both = (max(each.both for each in side) for side in (found, theirs[fault]))
        made += [
            Row(
                FAULTS[fault][0],
                f"new primary after {_seconds(mine)}",
                f"Sentinel {_seconds(other)}",
                f"{statistics.median(mine) / statistics.median(other):.2f}",
                goal="under 1 s" if fault == "stop" else "under 1",
                values={
                    "seconds": statistics.median(mine),
                    "most_seconds": max(mine),
                    "sentinel_seconds": statistics.median(other),
                    "sentinel_most_seconds": max(other),
                },
            ),
            Row(
                "   no write was acknowledged for",
                _seconds(pause),
                _seconds(other_pause),
                f"{statistics.median(pause) / statistics.median(other_pause):.2f}",
                values={
                    "pause_seconds": statistics.median(pause),
                    "sentinel_pause_seconds": statistics.median(other_pause),
                },
            ),
            Row(
                "   two servers took writes, at most for",
                f"{both:.2f} s",
                f"{other_both:.2f} s",
                goal="0 s",
                values={"both_seconds": both, "sentinel_both_seconds": other_both},
            ),
        ]
    mine_all, theirs_all = (
        [each for found in side.values() for each in found] for side in (ours, theirs)
    )
    made.append(
        Row(
            f"acknowledged writes lost in {len(mine_all)} fail-overs",
            _lost(mine_all),
            _lost(theirs_all),
            goal="0",
            values={
                "lost": sum(each.lost for each in mine_all),
                "acknowledged": sum(each.acknowledged for each in mine_all),
                "sentinel_lost": sum(each.lost for each in theirs_all),
                "sentinel_acknowledged": sum(each.acknowledged for each in theirs_all),
            },
        )
    )
    return made


def _seconds(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} s ({min(values):.2f}-{max(values):.2f})"


def _lost(found: list[FailOver]) -> str:
    return f"{sum(each.lost for each in found)} of {sum(each.acknowledged for each in found)}"
