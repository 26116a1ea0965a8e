"""Looks at the store: what it has for keepalives that are to be decided on, in one transaction."""

from collections.abc import Sequence

from kontrol.master.mirror import Mirror
from kontrol.master.records.pods import Live
from kontrol.master.records.records import Records
from kontrol.master.registry.admission import Counter, View
from kontrol.master.registry.queue import Entry
from kontrol.store.protocol import KeyValue, Range, Store

OPERATIONS = 128  # of a transaction


class Looks:
    """Looks at the store for entries, and for what the mirror shows under their ids elsewhere."""

    def __init__(self, store: Store, records: Records, mirror: Mirror) -> None:
        self._store = store
        self._records = records
        self._keys = records.keys
        self._mirror = mirror

    async def look(self, entries: list[Entry]) -> tuple[list[Entry], Sequence[KeyValue]]:
        """Read what the store has for entries, their `view`.

        Returns the entries for which one transaction had room, and the counter's key.
        """
        keys, records = self._keys, self._records
        elsewhere: list[tuple[Entry, tuple[Live, ...]]] = []
        ops = [Range(keys.counter)]
        for entry in entries:
            others = self._mirror.elsewhere(entry.record)
            if len(ops) + 2 * len(others) + 2 > OPERATIONS:
                break
            elsewhere.append((entry, others))
            for key in (entry.record.key, *(other.pod.key for other in others)):
                ops += Range(keys.pod(key)), Range(keys.registration(key))
        answer = await self._store.txn([], ops)
        results = iter([answer.range(i).kvs for i in range(len(ops))])
        counter = next(results)
        for entry, others in elsewhere:
            pods, registrations = next(results), next(results)
            pairs = [(next(results), next(results)) for _ in others]
            moved = (self._read_pod(kv) for kvs, _ in pairs for kv in kvs)
            theirs = (
                (kv.key.removeprefix(keys.registrations), records.registration(kv))
                for _, kvs in pairs
                for kv in kvs
            )
            entry.view = View(
                live=self._read_pod(pods[0]) if pods else None,
                live_revision=pods[0].mod_revision if pods else 0,
                registration=records.registration(registrations[0]) if registrations else None,
                registration_revision=registrations[0].mod_revision if registrations else 0,
                elsewhere=tuple(live for live in moved if live and live.pod.id == entry.record.id),
                registrations={key: each for key, each in theirs if each},
            )
        return [entry for entry, _ in elsewhere], counter

    def _read_pod(self, kv: KeyValue) -> Live | None:
        """Read a live pod; the mirror has decoded it, unless it lags behind."""
        if self._mirror.cache.entries.get(kv.key) == kv:
            return self._mirror.live(kv.key.removeprefix(self._keys.pods))
        return self._records.pod(kv)

    async def counter(self, found: Sequence[KeyValue], *, needed: bool) -> Counter:
        """Return the next number; where it cannot be read, count the numbers in use if `needed`."""
        number = self._records.counter(found[0]) if found else None
        revision = found[0].mod_revision if found else 0
        if number is not None or not needed:
            return Counter(number or 0, revision)
        keys = self._keys
        pods, registrations, chunks = [
            (await self._store.range(Range(prefix, prefix=True))).kvs
            for prefix in (keys.pods, keys.registrations, f"{keys.applied}/")
        ]
        return Counter(self._records.free_number(pods, registrations, chunks), revision)
