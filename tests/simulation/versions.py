"""A store as masters of another version use it: their records have other fields than ours.

One version later they have a field that is unknown here, one version earlier they lack a new one.
Such a master reads what it wrote as it wrote it; all others find the other version's record.
"""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from tests.simulation.history import KEYS, decode

from kontrol.store.protocol import (
    Batch,
    Compare,
    KeyValue,
    Lease,
    Op,
    Put,
    Range,
    RangeResult,
    Store,
    TxnResult,
    Watch,
)

NEXT = "x_next"  # the field that the next version adds to every record
LATER, EARLIER = 1, -1

# What this version added, by the key or its prefix: the one before does not write it.
ADDED: dict[str, tuple[str, ...]] = {
    KEYS.running: ("fover", "spec"),
    KEYS.candidates: ("version", "ttl", "fover", "damper"),
    KEYS.applied: ("ttl", "again", "note", "spec"),
    KEYS.registrations: ("sender",),
}

_RECORDS = (KEYS.registrations, KEYS.candidates, KEYS.running, KEYS.runs, KEYS.requests, KEYS.meta)


def later(key: str, value: bytes) -> bytes:
    """Return a record as the next version writes it."""
    record = decode(value) if key.startswith(_RECORDS) else None
    return value if record is None else json.dumps({**record, NEXT: True}).encode()


def earlier(key: str, value: bytes) -> bytes | None:
    """Return a record as the version before writes it, None if it does not."""
    if key.startswith(KEYS.live):
        return None
    if key == KEYS.last_acknowledged:
        return None
    record = decode(value)
    added = [name for prefix, names in ADDED.items() if key.startswith(prefix) for name in names]
    if record is None or not record.keys() & set(added):
        return value
    return json.dumps({name: it for name, it in record.items() if name not in added}).encode()


class OtherVersion:
    """A `Store` whose owner writes records as `edit` returns them."""

    def __init__(self, store: Store, edit: Callable[[str, bytes], bytes | None]) -> None:
        self._store = store
        self._edit = edit
        self._written: dict[bytes, bytes] = {}  # what the store has, to what was to be written

    async def range(self, request: Range) -> RangeResult:
        """See `Store.range`."""
        return self._result(await self._store.range(request))

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        """See `Store.txn`."""
        answer = await self._store.txn(compares, self._ops(then), self._ops(otherwise))
        results = tuple(
            self._result(result) if isinstance(result, RangeResult) else result
            for result in answer.results
        )
        return replace(answer, results=results)

    async def grant(self, ttl: int) -> Lease:
        """See `Store.grant`."""
        return await self._store.grant(ttl)

    async def refresh(self, lease: int) -> int:
        """See `Store.refresh`."""
        return await self._store.refresh(lease)

    async def remaining(self, lease: int) -> tuple[int, int]:
        """See `Store.remaining`."""
        return await self._store.remaining(lease)

    async def revoke(self, lease: int) -> None:
        """See `Store.revoke`."""
        await self._store.revoke(lease)

    async def alarms(self) -> tuple[str, ...]:
        """See `Store.alarms`."""
        return await self._store.alarms()

    @asynccontextmanager
    async def watch(
        self, key: str, *, prefix: bool = False, start: int, cluster: int = 0
    ) -> AsyncIterator[Watch]:
        """See `Store.watch`."""
        async with self._store.watch(key, prefix=prefix, start=start, cluster=cluster) as watch:
            yield _Watch(watch, self._kv)

    async def close(self) -> None:
        """See `Store.close`."""
        await self._store.close()

    def _ops(self, ops: Sequence[Op]) -> list[Op]:
        edited = (self._put(op) if isinstance(op, Put) else op for op in ops)
        return [op for op in edited if op is not None]

    def _put(self, op: Put) -> Put | None:
        value = self._edit(op.key, op.value)
        if value is None:
            return None
        if value != op.value:
            self._written[value] = op.value
        return replace(op, value=value)

    def _kv(self, kv: KeyValue) -> KeyValue:
        mine = self._written.get(kv.value)
        return kv if mine is None else replace(kv, value=mine)

    def _result(self, result: RangeResult) -> RangeResult:
        return replace(result, kvs=tuple(map(self._kv, result.kvs)))


class _Watch:
    def __init__(self, watch: Watch, read: Callable[[KeyValue], KeyValue]) -> None:
        self._watch = watch
        self._read = read

    async def __aiter__(self) -> AsyncIterator[Batch]:
        async for batch in self._watch:
            events = tuple(replace(event, kv=self._read(event.kv)) for event in batch.events)
            yield replace(batch, events=events)

    async def confirm(self) -> None:
        await self._watch.confirm()
