"""A tier in containers: etcd, masters, and what their callback tells in their logs.

The callback is the one of `deploy/masters`: each run is one line of a master's log, with the run's
number, its pods, and what changed. Another line says that the run was acknowledged.
"""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.image.containers import Container, Containers
from tests.image.engine import TOP

MASTER = "kontrol.unity3d.com/master"
DEADLINE = 60.0  # seconds, for whatever must happen at all: the machine may be very busy
TTL, FOVER = 5, 5
_RUN = re.compile(r"kontrol\.callback: run (\d+) pods (\[.*\]) changes (\{.*\})$")
_ACKNOWLEDGED = re.compile(r"run (\d+) acknowledged")


@dataclass(frozen=True)
class Run:
    """One acknowledged run: `pods` by id, with `seq` and `state`; `changes` are lists of ids."""

    number: int
    pods: dict[str, dict[str, Any]]
    changes: dict[str, list[str]]


class Tier:
    """Two masters, and the runs that they had acknowledged."""

    def __init__(self, masters: list[Container]) -> None:
        self.masters = masters

    @property
    def name(self) -> str:
        """What an agent's annotation says of this tier."""
        return "|".join(master.address for master in self.masters) + ":8000"

    def environ(self, app: str = "hello", role: str = "web") -> dict[str, str]:
        """Return the environment of a pod that reports to it."""
        return {
            "KONTROL_LABELS": json.dumps({"app": app, "role": role}),
            "KONTROL_ANNOTATIONS": json.dumps({MASTER: self.name}),
        }

    def runs(self) -> list[Run]:
        """Return the acknowledged runs so far, in order."""
        told: dict[int, Run] = {}
        acknowledged: set[int] = set()
        for master in self.masters:
            for line in master.log.lines:
                if found := _RUN.search(line):
                    pods = {pod["id"]: pod for pod in json.loads(found[2])}
                    told[int(found[1])] = Run(int(found[1]), pods, json.loads(found[3]))
                elif found := _ACKNOWLEDGED.search(line):
                    acknowledged.add(int(found[1]))
        return [told[number] for number in sorted(told) if number in acknowledged]

    async def settled(
        self, condition: Callable[[Run], bool], what: str, *, within: float = DEADLINE
    ) -> Run:
        """Wait until the condition holds of the last acknowledged run."""
        try:
            async with asyncio.timeout(within):
                while True:
                    runs = self.runs()
                    if runs and condition(runs[-1]):
                        return runs[-1]
                    await self._news()
        except TimeoutError:
            raise AssertionError(f"no {what} within {within:g} s; runs: {self.runs()}") from None

    async def _news(self) -> None:
        """Wait for a line of any master's log."""
        marks = [master.log.mark for master in self.masters]
        waiting = {
            asyncio.create_task(master.log.logged("", mark, within=DEADLINE))
            for master, mark in zip(self.masters, marks, strict=True)
            if master.log.process.returncode is None
        }
        assert waiting, "no master runs"
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def since(self, run: Run) -> dict[str, set[str]]:
        """Return what the runs after this one were told had changed, together."""
        later = [each for each in self.runs() if each.number > run.number]
        kinds = ("joined", "left", "lost", "changed")
        return {kind: {pod for each in later for pod in each.changes[kind]} for kind in kinds}


async def tier(
    containers: Containers, masters: int = 2, options: Sequence[str] = (), **more: str
) -> Tier:
    """Start etcd and masters, with these options and variables; returns when they listen."""
    etcd = await containers.etcd()
    environ = {
        "KONTROL_MODE": "master",
        "KONTROL_LABELS": json.dumps({"app": "hello", "role": "master"}),
        "KONTROL_ETCD": etcd.address,
        "KONTROL_CALLBACK": "/etc/kontrol/on-change",
        "KONTROL_TTL": str(TTL),
        "KONTROL_FOVER": str(FOVER),
        "KONTROL_DAMPER": "0.3",
        **more,
    }
    callback = TOP / "deploy" / "masters" / "on-change"
    mounts = (f"--volume={callback}:/etc/kontrol/on-change:ro", *options)
    started = await asyncio.gather(
        *(
            containers.run(f"master-{number}", "kontrol", env=environ, options=mounts)
            for number in range(masters)
        )
    )
    for master in started:
        await master.log.logged("master on port 8000")
    return Tier(started)
