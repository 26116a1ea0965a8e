"""The heads of the ledger: keys that its writes compare and move, so that each write is done once.

A write that compares all heads and moves one takes effect at most once, however late a copy of it
arrives. If its answer was lost, it took effect if the heads are now what it wrote. If they are
neither that nor what they were before, the store was restored: the term is over, and writes nothing
more.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from kontrol.master.term import Term
from kontrol.store.protocol import (
    Ambiguous,
    Compare,
    Delete,
    KeyValue,
    LeaseGone,
    Put,
    Range,
    Store,
    Unavailable,
)

log = logging.getLogger(__name__)

_RESTORED = "the ledger is not as it was left: the store was restored"


class Heads:
    """The modification revisions of some keys, as one term read or wrote them last."""

    def __init__(self, store: Store, term: Term, keys: Sequence[str]) -> None:
        """Only this term writes `keys`, and only by `move`."""
        self._store = store
        self._term = term
        self._revisions = dict.fromkeys(keys, 0)  # 0: absent
        self._moving = False

    def read(self, kvs: Sequence[KeyValue]) -> None:
        """Note what the store has of these keys."""
        for kv in kvs:
            self._revisions[kv.key] = kv.mod_revision

    def revision(self, key: str) -> int:
        """Return the revision at which one of the keys was written last, 0 if it is absent."""
        return self._revisions[key]

    def expected(self) -> Sequence[Compare]:
        """Return what a proof may compare: nothing while a write is under way."""
        return () if self._moving else self.compares()

    def compares(self) -> list[Compare]:
        """Compare the heads with what they were when they were last read or written here.

        The fence alone does not show that the store was restored: the candidacy that it compares
        may be in the snapshot.
        """
        return [Compare(key, "mod", "=", revision) for key, revision in self._revisions.items()]

    async def move(self, ops: Sequence[Put | Delete], conditions: Sequence[Compare] = ()) -> bool:
        """Write what moves a head, once, even if answers are lost.

        Returns False, and nothing was written, if one of `conditions` does not hold or the lease of
        one of `ops` is gone. Raises `Deposed` if something else moved the heads, and `StoreError`.
        """
        return await self._move(ops, conditions, None) is not None

    async def move_and_read(self, ops: Sequence[Put | Delete], read: Range) -> Sequence[KeyValue]:
        """Do the same, and return what `read` found then, or soon after."""
        return await self._move(ops, (), read) or ()

    async def _move(
        self, ops: Sequence[Put | Delete], conditions: Sequence[Compare], read: Range | None
    ) -> Sequence[KeyValue] | None:
        self._moving = True
        found: Sequence[KeyValue] | None = None
        with contextlib.suppress(LeaseGone):  # nothing was written
            found = await self._insist(ops, conditions, read)
        self._moving = False  # not if it is unknown what was written
        return found

    async def _insist(
        self, ops: Sequence[Put | Delete], conditions: Sequence[Compare], read: Range | None
    ) -> Sequence[KeyValue] | None:
        """Write until it is certain; returns what `read` found, None if nothing was written."""
        delay, done = 0.0, False
        reads = [] if read is None else [read]
        while True:
            try:
                if done and read is not None:  # an earlier try, of which the answer was lost
                    return (await self._store.range(read)).kvs
                answer = await self._term.write([*self.compares(), *conditions], [*ops, *reads])
                if answer.succeeded:
                    for op in ops:
                        if op.key in self._revisions:
                            put = isinstance(op, Put)
                            self._revisions[op.key] = answer.header.revision if put else 0
                    return () if read is None else answer.range(len(ops)).kvs
                done = await self._settle(ops)
                if done and read is not None:
                    continue
                if done or conditions:
                    return () if done else None
            except (Ambiguous, Unavailable) as error:
                log.warning("the ledger waits for the store: %s", error)
            delay = min(1.0, delay * 2 or 0.05)
            await asyncio.sleep(delay)

    async def _settle(self, ops: Sequence[Put | Delete]) -> bool:
        """Return whether an earlier try wrote `ops`. Raises `Deposed` if something else moved.

        One transaction is one revision: all that it put has that revision, and our values.
        """
        written = {op.key: op for op in ops}
        keys = list(self._revisions | written)
        answer = await self._store.txn([], [Range(key) for key in keys])
        found = {key: kvs[0] for i, key in enumerate(keys) if (kvs := answer.range(i).kvs)}
        heads = {key: found[key].mod_revision if key in found else 0 for key in self._revisions}
        if heads == self._revisions:
            return False
        revisions = set()
        for key in keys:
            op, kv = written.get(key), found.get(key)
            if isinstance(op, Put):
                if kv is None and op.lease:
                    continue  # expired since
                ours = kv is not None and kv.value == op.value
                revisions.add(kv.mod_revision if kv else 0)
            elif isinstance(op, Delete):
                ours = kv is None
            else:
                ours = heads[key] == self._revisions[key]
            if not ours:
                raise self._term.depose(_RESTORED)
        if len(revisions) != 1:
            raise self._term.depose(_RESTORED)
        self._revisions = heads
        return True
