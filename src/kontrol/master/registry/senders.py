"""The senders of keepalives: which may replace a record of another one, and which are in conflict.

A keepalive that is refused as `Stale` or `Conflict` may still be that of the process that lives:
clocks are wrong, records are forged, and processes end without deregistering. So a process that
keeps reporting replaces the records in its way once none of them was refreshed for TTL/2. That
depends on no host's clock, and a message that comes late does not keep reporting.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Iterable
from typing import TypeVar

from kontrol.ensemble.pod import Keepalive, Pod
from kontrol.master.records.pods import Live
from kontrol.master.registry.admission import Join, Leave, Refuse, Write, proves_alive
from kontrol.master.registry.conflicts import Claim, Conflict, Conflicts, Flip, Flips, Retries
from kontrol.master.registry.queue import Entry
from kontrol.store.protocol import Store

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Senders:
    """What this master sees of those that report to it."""

    def __init__(
        self,
        store: Store,
        live: Callable[[str], Live | None],
        *,
        ttl: Callable[[], float],
        news: asyncio.Event,
    ) -> None:
        """`live` returns the pod with a key, `ttl` the tier's in seconds.

        `news` is set when a conflict or a flip goes on.
        """
        self._store = store
        self._live = live
        self._ttl = ttl
        self._news = news
        self._retries = Retries()
        self._conflicts = Conflicts()
        self._flips = Flips()

    def conflicts(self) -> list[Conflict]:
        """Return the conflicts, without those that another master has settled."""
        return [
            each
            for each in self._conflicts.lasting(asyncio.get_running_loop().time(), self._ttl())
            if (there := self._live(each.refused.key)) is None
            or (there.pod.id, there.pod.nonce) != (each.refused.id, each.refused.nonce)
            or each.refused.nonce == each.holder.nonce
        ]

    def flips(self) -> list[Flip]:
        """Return the pods that two senders write in turn."""
        return self._flips.lasting(asyncio.get_running_loop().time(), self._ttl())

    async def settle(self, entry: Entry) -> None:
        """Settle a conflict, if that is the decision on this entry. Raises `StoreError`.

        If its process keeps reporting, and the records in its way were not refreshed for TTL/2, it
        gets the decision as it is without them. Else the conflict is noted.
        """
        refusal, record, view = entry.decision, entry.record, entry.view
        if not isinstance(refusal, Refuse) or refusal.otherwise is None:
            return
        process, ttl = (record.key, record.id, record.nonce), self._ttl()
        if not self._retries.add(process, asyncio.get_running_loop().time(), ttl):
            return
        records = [live for live in (view.live, *view.elsewhere) if live is not None]
        holders = [live for live in records if not proves_alive(record, live)]
        found = await all_of(self._store.remaining(live.lease) for live in holders)
        # Whole seconds, cut; and where the tier's TTL changed, the pod reports by the longer one.
        if all(
            not granted or granted - left - 1 >= max(granted, ttl) / 2 for left, granted in found
        ):
            entry.decision = refusal.otherwise
            return
        ages = (float(granted - left) if granted else math.inf for left, granted in found)
        own = [live for live in holders if live.pod.id == record.id]
        holder = own[0] if own and refusal.name == "Stale" else holders[0]
        self._note_conflict(entry, refusal.name, holder.pod, min(ages))

    def _note_conflict(self, entry: Entry, name: str, pod: Pod, seen: float) -> None:
        """Note that `pod` holds what this sender reports, last seen that many seconds ago."""
        record, view = entry.record, entry.view
        registration = (
            view.registration if pod.key == record.key else view.registrations.get(pod.key)
        )
        theirs = registration is not None and registration.id == pod.id
        sender = (registration.sender if registration is not None and theirs else None) or ""
        self._conflicts.note(
            _claim(record, str(entry.sender)),
            Claim(pod.id, pod.key, pod.ip, pod.nonce, pod.n, sender, seen),
            name,
            asyncio.get_running_loop().time(),
            self._ttl(),
        )
        self._news.set()

    def wrote(self, entry: Entry) -> None:
        """Note which sender wrote what: the decision on this entry was carried out."""
        record, decision = entry.record, entry.decision
        if not isinstance(decision, Refuse):
            self._conflicts.over(record.key, record.id, record.nonce)
        match decision:
            case Write(pod, live):
                twin = (live.pod.nonce, live.pod.n) == (record.nonce, record.n)
                content = pod.hash if twin or record.n is None else ""
            case Join():
                content = "" if record.n is not None else Pod.of(record, 0).hash
            case Leave():
                content = "left"
            case _:
                return
        claim = _claim(record, str(entry.sender))
        now, mark = asyncio.get_running_loop().time(), (record.key, record.nonce, content)
        flip = self._flips.wrote(claim, mark, entry.sender, now, self._ttl())
        if flip.flipping:
            self._news.set()
            if flip.turned and flip.times & (flip.times - 1) == 0:  # 4, 8, 16...
                log.warning(
                    "the record of pod %s changed back and forth %d times, and the ensemble with "
                    "it: two processes report under one id, or one reports to this tier under two "
                    "names: %s; %s",
                    record.id,
                    flip.times,
                    flip.last,
                    flip.before,
                )


async def all_of(calls: Iterable[Coroutine[None, None, _T]]) -> list[_T]:
    """Await calls that run concurrently. When all have ended, return their results, or raise."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


def _claim(record: Keepalive, sender: str) -> Claim:
    return Claim(record.id, record.key, record.ip, record.nonce, record.n, sender)
