"""A key that one term alone writes, again and again: only its last value can stay.

Each write compares the revision of the one before. So a copy of an earlier write that arrives late
(etcd may still commit what it never answered) changes nothing.
"""

import asyncio
import logging

from kontrol.master.election.term import Term
from kontrol.store.protocol import Ambiguous, Compare, Put, Range, Store, Unavailable

log = logging.getLogger(__name__)


class OwnedKey:
    """One key, written by one task at a time. `value` is what was written last, None before that.

    A key that is found changed by anybody else is written over.
    """

    def __init__(
        self,
        store: Store,
        term: Term,
        key: str,
        *,
        value: bytes | None = None,
        revision: int = 0,
        lease: int = 0,
    ) -> None:
        """`revision` is the key's modification revision as last read, 0 if it is absent."""
        self.value = value
        self._store = store
        self._term = term
        self._key = key
        self._revision = revision
        self._lease = lease

    async def put(self, value: bytes) -> None:
        """Write `value`, until the store has answered. Raises `Deposed` and `StoreError`."""
        delay = 0.0
        while True:
            try:
                if await self._try(value):
                    return
            except (Ambiguous, Unavailable) as error:
                log.warning("term %d waits for the store: %s", self._term.number, error)
            delay = min(1.0, delay * 2 or 0.05)
            await asyncio.sleep(delay)

    async def _try(self, value: bytes) -> bool:
        unmoved = Compare(self._key, "mod", "=", self._revision)
        answer = await self._term.write([unmoved], [Put(self._key, value, self._lease)])
        if answer.succeeded:
            self._revision = answer.header.revision
        else:
            found = (await self._store.range(Range(self._key))).kvs
            self._revision = found[0].mod_revision if found else 0
            if not found or found[0].value != value:
                return False
        self.value = value
        return True
