"""`kontrol export` and `kontrol import`: state, numbers and ledger of a tier as one JSON document.

A document is restored only into a tier that is not in use. The counter and the floor of terms are
raised first, so that no number of a pod, a run or a term is given twice, whatever happens during
the import. All of the document is validated before anything is written, by the code that reads the
records of the store.
"""

import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from kontrol.ensemble.canonical import JSON, canonical
from kontrol.master.records.desired import Desired
from kontrol.master.records.fields import HIGHEST_RUN, Damaged, Fields
from kontrol.master.records.masters import Meta
from kontrol.master.records.pods import Registration
from kontrol.master.records.published import Published
from kontrol.master.records.records import Records
from kontrol.master.records.runs import (
    Head,
    decode_entry,
    decode_state,
    encode_rows,
    member_of,
)
from kontrol.store.protocol import Compare, Op, Put, Range, Store

log = logging.getLogger(__name__)

FORMAT = 1
_SEATS = "seats"  # the name of the registrations in a document
_BATCH = 16  # operations of up to 4 KiB
_KEY = re.compile(
    r"[0-9A-Za-z_-]{1,64}(\.[0-9]{1,20})?\Z"
)  # `Keys.registration` and `Keys.archived_registration`


class ArchiveError(Exception):
    """A document that cannot be read, or a tier into which it must not be restored."""


async def export(store: Store, records: Records) -> dict[str, JSON]:
    """Return the document. Damaged records are left out, with a warning. Raises `StoreError`."""
    keys = records.keys
    singles = (
        *(keys.meta, keys.counter, keys.applied, keys.state, keys.running),
        *(keys.published, keys.spec),
    )
    prefixes = (keys.registrations, keys.runs, f"{keys.applied}/", keys.candidates)
    answer = await store.txn(
        [], [*(Range(key) for key in singles), *(Range(key, prefix=True) for key in prefixes)]
    )
    found = [answer.range(i).kvs for i in range(len(singles) + len(prefixes))]
    meta, counter, applied, state, running, published, spec, *others = found
    registrations, runs, chunks, candidates = others
    layout = records.meta(meta[0]) if meta else None
    number = records.counter(counter[0]) if counter else None
    head = records.head(applied[0]) if applied else None
    if number is None:
        pods = (await store.range(Range(keys.pods, prefix=True))).kvs
        number = records.free_number(pods, registrations, chunks)
    document: dict[str, JSON] = {
        "kontrol": FORMAT,
        "tier": keys.root,
        # no higher one was given
        "term": max(
            answer.header.revision + (layout.floor if layout else 0),
            records.highest_term(running, runs, candidates),
        ),
        "seq": number,
        "applied": None,
        _SEATS: {
            kv.key.removeprefix(keys.registrations): registration.public()
            for kv in registrations
            if (registration := records.registration(kv))
            and _KEY.match(kv.key.removeprefix(keys.registrations))
        },
        "runs": {str(entry["run"]): entry for kv in runs if (entry := records.entry(kv))},
        "states": await _states(store, records),
    }
    if head is not None:
        mine = keys.members(head.run)
        rows = [row for kv in chunks if kv.key.startswith(mine) for row in records.rows(kv)]
        document["applied"] = {**head.public(), "members": rows}
    for kv in state:
        if (kept := records.state(kv)) is not None:
            document["state"] = json.loads(kept)
    for kv in published:
        if (what := records.published(kv)) is not None:
            document["published"] = what.public()
    for kv in spec:
        if (desired := records.desired(kv)) is not None:
            document["spec"] = json.loads(desired.encode())
    if records.damaged:
        log.warning("%d damaged records are not in the export", records.damaged)
    return document


async def restore(store: Store, records: Records, document: JSON) -> str:
    """Restore a document into an unused tier; returns a line that says what was restored.

    Raises `ArchiveError` and `StoreError`.
    """
    keys = records.keys
    found = _read(document)
    try:
        puts, last = _writes(records, found)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ArchiveError(f"the document is damaged: {_reason(error)}; use another one") from None
    await _claim(store, records, found)
    for batch in _batches(puts):
        await store.txn([], batch)
    free = Compare(keys.applied, "create", "=", 0)
    if not (await store.txn([free], last)).succeeded:
        raise ArchiveError(
            "a master ran the callback during the import: stop all masters, delete the tier's keys "
            f"(`etcdctl del --prefix {keys.root}`), and import again"
        )
    return (
        f"restored {len(found[_SEATS])} registrations, {len(found['runs'])} entries of the ledger "
        f"and {len(found['states'])} states to {keys.root}; the next pod is #{found['seq']}"
    )


async def _states(store: Store, records: Records) -> dict[str, JSON]:
    keys = records.keys
    states: dict[str, JSON] = {}
    listed = await store.range(Range(keys.states, prefix=True, keys_only=True))
    for kv in listed.kvs:  # one by one: each may be half a megabyte
        number = keys.number(kv.key)
        for found in (await store.range(Range(kv.key))).kvs:
            state = records.state(found)
            if state is not None and number is not None:
                states[str(number)] = json.loads(state)
    return states


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _writes(records: Records, found: dict[str, Any]) -> tuple[list[Put], list[Op]]:
    """Return what may be written in any order, and what must be written last, in one transaction.

    Raises `ValueError`, `TypeError`, `KeyError` or `AttributeError` for a damaged document.
    """
    keys = records.keys
    numbers = Fields({"term": found["term"], "seq": found["seq"]})
    numbers.number("term")
    numbers.number("seq")
    puts: list[Put] = []
    for key, value in found[_SEATS].items():
        if not _KEY.match(key):
            raise Damaged("a registration's key", key, "a pod's key, or one with a number")
        puts.append(Put(keys.registrations + key, Registration.decode(canonical(value)).encode()))
    for text, value in found["runs"].items():
        entry = canonical(value)
        decode_entry(entry, _run(text))
        puts.append(Put(keys.run(_run(text)), entry))
    for text, value in found["states"].items():
        puts.append(Put(keys.state_of(_run(text)), decode_state(canonical(value))))
    last: list[Op] = []
    if found["applied"] is not None:
        rows = found["applied"]["members"]
        for row in rows:
            member_of(row)
        rest = {name: value for name, value in found["applied"].items() if name != "members"}
        head = Head.decode(canonical(rest))
        prefix = keys.members(head.run)
        puts += [Put(f"{prefix}{i:04d}", chunk) for i, chunk in enumerate(encode_rows(rows))]
        last.append(Put(keys.applied, head.encode()))
    if found.get("published") is not None:
        published = Published.decode(canonical(found["published"]))
        raised = replace(published, version=published.version + 1)  # pods are to see that it came
        last.append(Put(keys.published, raised.encode()))
    if "spec" in found:
        last.append(Put(keys.spec, Desired.decode(canonical(found["spec"])).encode()))
    if "state" in found:
        last.append(Put(keys.state, decode_state(canonical(found["state"]))))
    return puts, last


def _run(text: str) -> int:
    """Parse a run's number, without leading zeros. Raises `Damaged`."""
    number = int(text)
    if str(number) != text or not 0 <= number <= HIGHEST_RUN:
        raise Damaged("a run", text, f"a number from 0 to {HIGHEST_RUN}")
    return number


async def _claim(store: Store, records: Records, found: dict[str, Any]) -> None:
    """Raise the counter and the floor, in a tier that has neither. Raises `ArchiveError`."""
    keys = records.keys
    standing = (await store.range(Range(keys.candidates, prefix=True))).kvs
    if standing:
        names = ", ".join(sorted(records.candidate(kv).id for kv in standing))
        raise ArchiveError(f"masters are running ({names}): stop them all, then import")
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
            f'this is not an export of Kontrol: expected an object with "kontrol": {FORMAT}'
        )
    found: dict[str, Any] = dict(document)
    for name, kind in (("term", int), ("seq", int), (_SEATS, dict), ("runs", dict)):
        if not isinstance(found.get(name), kind):
            raise ArchiveError(f"the document is damaged: {name} is not of type {kind.__name__}")
    return {"states": {}, "applied": None, **found}


def _batches(puts: Sequence[Put]) -> Iterable[list[Op]]:
    """Group the writes into batches that one request can hold."""
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
