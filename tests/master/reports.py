"""Agents' rhythm, slow networks, and what the store holds of pods, on the store model."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.master.support import KEYS, record
from tests.support.memory import MemoryCluster, Request

from kontrol.master.master import Master
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import Range

_Answer = TypeVar("_Answer")


class Slow:
    """A network on which everything takes `delay` seconds each way."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay

    async def call(self, _request: Request, do: Callable[[], _Answer]) -> _Answer:
        await asyncio.sleep(self.delay)
        answer = do()
        await asyncio.sleep(self.delay)
        return answer

    async def deliver(self) -> bool:
        await asyncio.sleep(self.delay)
        return False


@dataclass
class Reporter:
    """A pod's agent, as far as its rhythm goes: it reports to the first of `masters` that runs."""

    masters: list[Master]
    number: int
    ttl: float
    fields: dict[str, Any] = field(default_factory=dict)
    told: list[float | str] = field(default_factory=list)  # TTLs, and names of refusals

    async def run(self) -> None:
        """Report until cancelled, as `agent/schedule.py` has it."""
        while True:
            try:
                async with asyncio.timeout(min(self.ttl / 6, 5)):
                    told = await self.masters[0].ping(record(self.number, **self.fields))
            except Refused as refused:
                self.told.append(refused.name)
            except (TimeoutError, IndexError):
                self.told.append("no answer")
            else:
                ttl = told["ttl"]
                assert isinstance(ttl, int | float)
                self.told.append(ttl)
                self.ttl = ttl
                await asyncio.sleep(self.ttl / 3)
                continue
            await asyncio.sleep(self.ttl / 8)


@asynccontextmanager
async def reporting(*reporters: Reporter) -> AsyncIterator[None]:
    """Pods that report meanwhile, whatever they are told."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(reporter.run()) for reporter in reporters]
        yield
        for task in tasks:
            task.cancel()


def born(cluster: MemoryCluster) -> dict[str, int]:
    """The create revisions of the pods' records by id: one that was dropped has another."""
    found = cluster.core.range(Range(KEYS.pods, prefix=True)).kvs
    return {json.loads(kv.value)["id"]: kv.create_revision for kv in found}
