"""The registry: keepalives in, pods in the store out, acknowledged once the store has them.

A keepalive goes one way down:

1. What does the mirror make of it? If a live record of the same identity is known, its lease is
   refreshed at once, whatever comes after: a pod that reports lives on however full or slow the
   store is.
2. If it says nothing new, the refresh is all: no write.
3. Everything else is read, decided and written by the one `Writer`.
4. It is acknowledged if the lease under which the pod then is was refreshed, or granted for it.

The lease's TTL is the tier's. A lease that was granted another (the setting changed since) is
replaced by 3, see `leases`; until then the pod is told the shorter of the two.
"""

import asyncio
from collections import Counter
from collections.abc import Callable

from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.pod import BadRecord, Keepalive, parse_keepalive
from kontrol.master.mirror import Mirror
from kontrol.master.records.pods import Live
from kontrol.master.records.records import Records
from kontrol.master.registry.admission import Join, Refresh, View, Write, decide
from kontrol.master.registry.conflicts import NOBODY, Conflict, Flip, Sender
from kontrol.master.registry.leases import LeaseRefresh, Leases
from kontrol.master.registry.quota import Bounds, Limited
from kontrol.master.registry.writer import Writer
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import NoSpace, Store, StoreError


class Registry:
    """Takes keepalives while `run` is running.

    `outcomes` counts them: `refreshed`, `written`, or the name of the refusal.
    """

    def __init__(
        self,
        store: Store,
        records: Records,
        mirror: Mirror,
        *,
        ttl: Callable[[], float],
        leader: Callable[[], str | None],
        bounds: Bounds,
    ) -> None:
        """`ttl` tells the seconds that a silent pod of this tier is given, `leader` its name."""
        self._mirror = mirror
        self._ttl = ttl
        self._leader = leader
        self._leases = Leases(store, ttl=ttl)
        self.outcomes: Counter[str] = Counter()
        self.writer = Writer(store, records, mirror, self._leases, ttl=ttl, bounds=bounds)

    async def run(self) -> None:
        """Refresh and write, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._leases.run())
            group.create_task(self.writer.run())

    async def ping(self, raw: str | bytes, sender: Sender = NOBODY) -> dict[str, JSON]:
        """Take one keepalive, the JSON text; returns the acknowledgement, once the store has it.

        Returns `seq` (None after a farewell of a stranger), `ttl` in seconds, and `leader`.
        Raises `Refused`: `InvalidRecord`, `Conflict`, `Stale`, `Gone`; `TooManyPods`,
        `TooManyBytes`, `TooManyJoins`, see `quota`; `NotWritten` if the pod's lease was refreshed
        and its change could not be written; else `Unavailable`.
        """
        try:
            seq, ttl, outcome = await self._take(raw, sender)
        except Refused as refused:
            self.outcomes[refused.name] += 1
            raise
        self.outcomes[outcome] += 1
        return {"seq": seq, "ttl": ttl, "leader": self._leader()}

    def conflicts(self) -> list[Conflict]:
        """Return the conflicts for registrations, but for those that another master has settled."""
        live = self._mirror.live
        now = asyncio.get_running_loop().time()
        return [
            each
            for each in self.writer.conflicts.standing(now, self._ttl())
            if (there := live(each.refused.key)) is None
            or (there.pod.id, there.pod.nonce) != (each.refused.id, each.refused.nonce)
            or each.refused.nonce == each.holder.nonce
        ]

    def flips(self) -> list[Flip]:
        """Return the pods that two senders write in turn."""
        return self.writer.flips.standing(asyncio.get_running_loop().time(), self._ttl())

    def limited(self) -> list[Limited]:
        """Return the bounds that keepalives met within a minute."""
        return self.writer.quota.limited(asyncio.get_running_loop().time())

    async def _take(self, raw: str | bytes, sender: Sender) -> tuple[int | None, float, str]:
        """Take one keepalive; returns its `seq`, its TTL and how it was taken."""
        try:
            record = parse_keepalive(raw)
        except BadRecord as error:
            raise Refused("InvalidRecord", str(error)) from None
        current = self._mirror.cache.current
        view = View(live=self._mirror.live(record.key), elsewhere=self._mirror.elsewhere(record))
        decision = decide(record, view)
        known = decision.live.pod.seq if isinstance(decision, Refresh) else None
        refresh: LeaseRefresh | None = None
        try:
            if isinstance(decision, Refresh | Write | Join):
                refresh = self._refresh(record, view.live)
            async with asyncio.timeout(_patience(self._ttl(), current=current)):
                if refresh is not None and known is not None:
                    await refresh.answer()
                    if current and not self._leases.unfit(refresh):
                        return known, self._leases.tell(refresh), "refreshed"
                urgent = known is None
                entry = self._write(record, len(raw), refresh, urgent=urgent, sender=sender)
                return *await entry, "written"
        except (StoreError, TimeoutError) as error:
            if refresh is not None and refresh.ttl:  # the pod lives
                if known is None:
                    raise _not_written(record, error) from None
                if current:  # all that it waits for is a lease of another TTL
                    return known, self._leases.tell(refresh), "refreshed"
            raise _unavailable(error) from None

    def _refresh(self, record: Keepalive, live: Live | None) -> LeaseRefresh | None:
        """Begin the refresh of the pod's lease, and of one that the mirror does not show yet."""
        granted = self.writer.granted(record)
        if live is not None and granted == live.lease:
            self.writer.shown(record)
        elif granted:
            self._leases.refresh(granted)
        mine = live is not None and live.pod.id == record.id
        return self._leases.refresh(live.lease) if live is not None and mine else None

    async def _write(
        self,
        record: Keepalive,
        size: int,
        refresh: LeaseRefresh | None,
        *,
        urgent: bool,
        sender: Sender,
    ) -> tuple[int | None, float]:
        """Write a keepalive, and see that its lease is refreshed; returns its `seq` and TTL."""
        while True:
            written = await self.writer.write(record, size, refresh, urgent=urgent, sender=sender)
            if written.granted or not written.lease:
                return written.seq, written.granted or self._ttl()
            if refresh is None or refresh.lease != written.lease:
                refresh = self._leases.refresh(written.lease)
            await refresh.answer()
            if not self._leases.unfit(refresh):
                return written.seq, self._leases.tell(refresh)


def _patience(ttl: float, *, current: bool) -> float:
    """Seconds for the store to answer: less than an agent waits, little if it is silent."""
    return min(4.0, ttl / 7) if current else min(1.0, ttl / 20)


def _not_written(record: Keepalive, error: Exception) -> Refused:
    why = str(error) or "no answer in time"
    alive = f"pod {record.id} is alive: its lease was refreshed"
    return Refused("NotWritten", f"{alive}; its change is not in etcd yet: {why}")


def _unavailable(error: Exception) -> Refused:
    why = str(error) or "not in time"
    if isinstance(error, NoSpace):
        what = f"etcd is full: no pod can join or deregister ({why})"
    else:
        what = f"this master has no answer from etcd ({why})"
    return Refused("Unavailable", f"{what}; try another, or again")
