"""The sweep: seats that nobody used for a day are forgotten, and their numbers with them.

A seat outlives its pod so that a pod which comes back finds its number. The first sweep that finds
it without a pod stamps it, one that finds the stamp a day old deletes it; both compare that
nothing moved, so a pod that comes back meanwhile keeps its seat.
"""

import time
from dataclasses import replace

from kontrol.master.election.term import Term
from kontrol.master.records.records import Records
from kontrol.store.protocol import Compare, Delete, Op, Put, Range, Store

IDLE = 24 * 3600.0  # seconds


async def sweep(store: Store, records: Records, term: Term, *, now: float | None = None) -> int:
    """Stamp and delete unused seats; returns how many were deleted.

    `now` is in Unix seconds: stamps outlive the machine that made them. Raises `Deposed` and
    `StoreError`.
    """
    keys = records.keys
    now = time.time() if now is None else now
    answer = await store.txn(
        [], [Range(keys.pods, prefix=True, keys_only=True), Range(keys.seats, prefix=True)]
    )
    live = {kv.key.removeprefix(keys.pods) for kv in answer.range(0).kvs}
    deleted = 0
    for kv in answer.range(1).kvs:
        name = kv.key.removeprefix(keys.seats)
        if name in live:
            continue
        seat = records.seat(kv)
        if seat is None:
            continue
        unmoved = Compare(kv.key, "mod", "=", kv.mod_revision)
        if seat.idle is None:
            op: Op = Put(kv.key, replace(seat, idle=now).encode())
        elif now - seat.idle >= IDLE:
            op = Delete(kv.key)
            deleted += 1
        else:
            continue
        await term.write([unmoved], [op])
    return deleted
