"""The highest term and run that this process has seen: what a store that goes back cannot undo.

A restore from a backup forgets runs that callbacks have fenced by, whether it lowers the store's
revision or raises it. Every master remembers, so any that lives through a restore can lead on.
"""

from collections.abc import Sequence

from kontrol.master.records.fields import BELIEVED_RUN
from kontrol.master.records.records import Records
from kontrol.master.watchcache import OnRestore, WatchCache
from kontrol.store.protocol import Event, Store


class HighWater:
    """`term` is 0, and `run` as well, before any was seen; `follow` must be running."""

    def __init__(self, store: Store, records: Records, *, silence: float) -> None:
        """`silence` as for a `WatchCache`."""
        self.term = 0
        self.run = 0
        self._records = records
        self._follower = WatchCache(store, records.keys.last_run, silence=silence)
        self._follower.listen(self._take)

    def on_restore(self, listener: OnRestore) -> None:
        """Call `listener` when the store went back, with the last revision known from before."""
        self._follower.on_restore(listener)

    async def follow(self) -> None:
        """Follow the number of the last run until cancelled."""
        await self._follower.run()

    def saw_term(self, number: int) -> None:
        """Note a term, or the highest that may have been."""
        self.term = max(self.term, number)

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            number = None if event.type == "delete" else self._records.last_run(event.kv)
            if number is not None and number <= BELIEVED_RUN:
                self.run = max(self.run, number)
