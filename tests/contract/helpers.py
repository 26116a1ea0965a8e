"""What the contract's tests do again and again."""

import asyncio
from collections.abc import AsyncIterator

from tests.contract.conftest import Bed

from kontrol.store.protocol import (
    Batch,
    Event,
    Put,
    Range,
    Store,
    Watch,
)

DEADLINE = 30.0  # seconds


async def put(bed: Bed, *names: str, lease: int = 0, value: bytes = b"") -> int:
    """Put keys in one transaction; return its revision."""
    ops = [Put(bed.key(name), value or name.encode(), lease) for name in names]
    return (await bed.store.txn([], ops)).header.revision


async def names(bed: Bed) -> list[str]:
    found = await bed.store.range(Range(bed.prefix, prefix=True))
    return [kv.key.removeprefix(bed.prefix) for kv in found.kvs]


async def now(store: Store) -> int:
    return (await store.range(Range("/", limit=1))).header.revision


async def take(batches: AsyncIterator[Batch], count: int) -> list[Event]:
    """Receive until `count` events have come."""
    events: list[Event] = []
    async with asyncio.timeout(DEADLINE):
        while len(events) < count:
            events.extend((await anext(batches)).events)
    return events


async def settle(watch: Watch, batches: AsyncIterator[Batch]) -> list[Event]:
    """Receive all events up to now."""
    asked = asyncio.get_running_loop().time()
    await watch.confirm()
    events: list[Event] = []
    async with asyncio.timeout(DEADLINE):
        while True:
            batch = await anext(batches)
            events.extend(batch.events)
            if batch.confirmed >= asked:
                return events
