"""What a tier must not lose with its etcd, as one JSON document: state, numbers and ledger.

A document is put into a tier that nobody uses yet. It raises the counter and the floor of terms
first, so that whatever happens meanwhile, no number of a pod, a run or a term is told twice.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from kontrol.ensemble.canonical import JSON, canonical
from kontrol.ensemble.difference import Member
from kontrol.master.operator.form import check
from kontrol.master.records.keys import Keys
from kontrol.master.records.meta import Meta
from kontrol.master.records.pods import Seat
from kontrol.master.records.runs import encode_members
from kontrol.store.protocol import Compare, KeyValue, Op, Put, Range, Store

FORMAT = 1
_BATCH = 16  # operations of up to 4 KiB


class ArchiveError(Exception):
    """A document that cannot be read, or a tier that it must not be put into."""


async def export(store: Store, keys: Keys) -> dict[str, JSON]:
    """Return the document. Raises `StoreError`."""
    singles = (keys.meta, keys.counter, keys.applied, keys.state)
    prefixes = (keys.seats, keys.runs, f"{keys.applied}/")
    answer = await store.txn(
        [], [*(Range(key) for key in singles), *(Range(key, prefix=True) for key in prefixes)]
    )
    meta, counter, applied, state, seats, runs, chunks = (answer.range(i).kvs for i in range(7))
    listed = await store.range(Range(keys.states, prefix=True, keys_only=True))
    states: dict[str, JSON] = {}
    for kv in listed.kvs:  # one by one: each may be half a megabyte
        found = (await store.range(Range(kv.key))).kvs
        if found:
            states[_number(kv, keys.states)] = json.loads(found[0].value)
    head: dict[str, Any] = json.loads(applied[0].value) if applied else {"run": 0}
    mine = keys.members(head["run"])
    members = [row for kv in chunks if kv.key.startswith(mine) for row in json.loads(kv.value)]
    floor = Meta.decode(meta[0].value).floor if meta else 0
    document: dict[str, JSON] = {
        "kontrol": FORMAT,
        "tier": keys.root,
        "term": floor + answer.header.revision,  # none higher was told
        "seq": int(counter[0].value) if counter else 0,
        "applied": {**head, "members": members} if applied else None,
        "seats": {kv.key.removeprefix(keys.seats): json.loads(kv.value) for kv in seats},
        "runs": {_number(kv, keys.runs): json.loads(kv.value) for kv in runs},
        "states": states,
    }
    if state:
        document["state"] = json.loads(state[0].value)
    return document


async def restore(store: Store, keys: Keys, document: JSON) -> str:
    """Put a document into an unused tier; returns a line on what was put there.

    Raises `ArchiveError` and `StoreError`.
    """
    found = _read(document)
    try:
        check(found)
        puts, last = _writes(keys, found)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ArchiveError(f"the document is damaged: {_reason(error)}: take another") from None
    await _claim(store, keys, found)
    for batch in _batches(puts):
        await store.txn([], batch)
    free = Compare(keys.applied, "create", "=", 0)
    if not (await store.txn([free], last)).succeeded:
        raise ArchiveError(
            "a master ran the callback meanwhile: stop all masters, delete the tier's keys "
            f"(`etcdctl del --prefix {keys.root}`), and import again"
        )
    return (
        f"{keys.root}: {len(found['seats'])} numbers of pods, {len(found['runs'])} entries of the "
        f"ledger and {len(found['states'])} states; the next pod is #{found['seq']}"
    )


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _writes(keys: Keys, found: dict[str, Any]) -> tuple[list[Put], list[Op]]:
    """Return what may be written one after the other, and what is to be written last, at once."""
    puts = [Put(keys.seats + key, Seat(**seat).encode()) for key, seat in found["seats"].items()]
    puts += [Put(keys.run(int(n)), canonical(entry)) for n, entry in found["runs"].items()]
    puts += [Put(keys.state_of(int(n)), canonical(kept)) for n, kept in found["states"].items()]
    last: list[Op] = []
    if found["applied"]:
        head = {name: value for name, value in found["applied"].items() if name != "members"}
        members = [Member(*row) for row in found["applied"]["members"]]
        prefix = keys.members(head["run"])
        chunks = enumerate(encode_members(members))
        puts += [Put(f"{prefix}{i:04d}", chunk) for i, chunk in chunks]
        last.append(Put(keys.applied, canonical(head)))
    if "state" in found:
        last.append(Put(keys.state, canonical(found["state"])))
    return puts, last


async def _claim(store: Store, keys: Keys, found: dict[str, Any]) -> None:
    """Raise the counter and the floor, in a tier that has none."""
    standing = (await store.range(Range(keys.candidates, prefix=True))).kvs
    if standing:
        names = ", ".join(sorted(str(json.loads(kv.value)["id"]) for kv in standing))
        raise ArchiveError(f"masters are at work ({names}): stop them all, then import")
    answer = await store.range(Range(keys.root, prefix=True, limit=1, keys_only=True))
    floor = max(0, found["term"] + 1 - answer.header.revision)
    claimed = not answer.kvs and await store.txn(
        [Compare(key, "create", "=", 0) for key in (keys.meta, keys.counter, keys.applied)],
        [Put(keys.meta, Meta(floor).encode()), Put(keys.counter, b"%d" % found["seq"])],
    )
    if not (claimed and claimed.succeeded):
        raise ArchiveError(
            f"{keys.root} is in use: to replace it, delete it first (`etcdctl del --prefix "
            f"{keys.root}`) while no master runs"
        )


def _read(document: JSON) -> dict[str, Any]:
    if not isinstance(document, dict) or document.get("kontrol") != FORMAT:
        raise ArchiveError(
            f'this is no export of Kontrol: expected an object with "kontrol": {FORMAT}'
        )
    found: dict[str, Any] = dict(document)
    for name, kind in (("term", int), ("seq", int), ("seats", dict), ("runs", dict)):
        if not isinstance(found.get(name), kind):
            raise ArchiveError(f"the document is damaged: {name} is no {kind.__name__}")
    return {"states": {}, "applied": None, **found}


def _number(kv: KeyValue, prefix: str) -> str:
    return str(int(kv.key.removeprefix(prefix)))


def _batches(puts: Sequence[Put]) -> Iterable[list[Op]]:
    """Group what is to be written, within what one request may hold."""
    batch: list[Op] = []
    size = 0
    for put in puts:
        if batch and (len(batch) == _BATCH or size + len(put.value) > 700_000):
            yield batch
            batch, size = [], 0
        batch.append(put)
        size += len(put.value)
    if batch:
        yield batch
