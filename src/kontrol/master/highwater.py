"""The highest term, run and published version that this process has seen.

A restore of the store cannot undo them. It forgets runs whose numbers callbacks use as fences, and
versions that agents have, whether it lowers the store's revision or raises it. Every master
remembers them, so any that survives a restore can lead. Agents remind masters of versions.

It also remembers when it saw which run acknowledged: a run that asked to be repeated is repeated at
its time by whichever master leads then.
"""

import asyncio
from collections.abc import Sequence

from kontrol.master.records.fields import BELIEVED_RUN
from kontrol.master.records.published import BELIEVED_VERSION
from kontrol.master.records.records import Records
from kontrol.master.watchcache import WatchCache
from kontrol.store.protocol import Event, Store


class HighWater:
    """`term`, `run` and `version` are 0 before any was seen; `cache.run` must be running.

    `cache` follows the number of the last run, and that of the last acknowledged one.
    """

    def __init__(self, store: Store, records: Records, *, silence: float) -> None:
        """`silence` is that of the `WatchCache`, in seconds."""
        self.term = 0
        self.run = 0
        self.version = 0
        self._records = records
        self.cache = WatchCache(store, records.keys.last_run, silence=silence)
        self.cache.listen(self._take)
        self.cache.on_restore(lambda _: self._forget())
        # The run that was acknowledged last and the revision at which, and when it was first seen.
        self._acknowledged: tuple[int, int, float] | None = None

    def acknowledged(self, run: int, revision: int) -> float:
        """Return the loop time at which the last acknowledged run was first seen as such.

        `revision` is the store's at which that was written, 0 before the first run. If it is news,
        the time is now: so it is never before the run was acknowledged.
        """
        if self._acknowledged is None or self._acknowledged[:2] != (run, revision):
            self._acknowledged = run, revision, asyncio.get_running_loop().time()
        return self._acknowledged[2]

    def _forget(self) -> None:
        """The store was restored: another run may come to have that number and revision."""
        self._acknowledged = None

    def saw_term(self, number: int) -> None:
        """Note a term, or the highest that there may have been."""
        self.term = max(self.term, number)

    def saw_version(self, version: int) -> None:
        """Note a version of what is published, if it can be true."""
        if version <= BELIEVED_VERSION:
            self.version = max(self.version, version)

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            number = None if event.type == "delete" else self._records.last_run(event.kv)
            if number is None or number > BELIEVED_RUN:
                continue
            self.run = max(self.run, number)
            known = 0 if self._acknowledged is None else self._acknowledged[1]
            revision = event.kv.mod_revision
            if event.kv.key == self._records.keys.last_acknowledged and revision > known:
                self.acknowledged(number, revision)
