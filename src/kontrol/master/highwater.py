"""The highest term and run that this process has seen: a restore of the store cannot undo them.

A restore from a backup forgets runs whose numbers callbacks use as fences, whether it lowers the
store's revision or raises it. Every master remembers them, so any that survives a restore can lead.
"""

from collections.abc import Sequence

from kontrol.master.records.fields import BELIEVED_RUN
from kontrol.master.records.records import Records
from kontrol.master.watchcache import WatchCache
from kontrol.store.protocol import Event, Store


class HighWater:
    """`term` and `run` are 0 before any was seen; `cache.run` must be running.

    `cache` follows the number of the last run.
    """

    def __init__(self, store: Store, records: Records, *, silence: float) -> None:
        """`silence` is that of the `WatchCache`, in seconds."""
        self.term = 0
        self.run = 0
        self._records = records
        self.cache = WatchCache(store, records.keys.last_run, silence=silence)
        self.cache.listen(self._take)

    def saw_term(self, number: int) -> None:
        """Note a term, or the highest that there may have been."""
        self.term = max(self.term, number)

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            number = None if event.type == "delete" else self._records.last_run(event.kv)
            if number is not None and number <= BELIEVED_RUN:
                self.run = max(self.run, number)
