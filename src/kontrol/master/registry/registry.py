"""The registry: keepalives in, pods in the store out, acknowledged once the store has them.

A keepalive takes one path:

1. If the mirror has a live record that it proves alive, the refresh of that record's lease begins
   before anything else: a pod that reports stays alive however full or slow the store is.
2. If it says nothing new, the refresh is all. No write, and no decision.
3. Everything else waits in the queue for the one `Writer`, which looks at the store, decides on
   what it has, and commits that.
4. It is acknowledged when the lease that the pod then has was refreshed, or granted for it.

The lease's TTL is the tier's. A lease that was granted another TTL (the setting has changed since)
is replaced by 3, see `leases`; until then the shorter of the two is acknowledged.
"""

import asyncio
from collections import Counter
from collections.abc import Callable

from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.pod import BadRecord, Keepalive, parse_keepalive
from kontrol.master.mirror import Mirror
from kontrol.master.records.pods import Live
from kontrol.master.records.records import Records
from kontrol.master.registry.admission import proves_alive, unchanged
from kontrol.master.registry.conflicts import UNKNOWN, Sender
from kontrol.master.registry.leases import LeaseRefresh, Leases
from kontrol.master.registry.queue import WriteQueue
from kontrol.master.registry.quota import Bounds, Quota
from kontrol.master.registry.senders import Senders
from kontrol.master.registry.writer import Writer
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import NoSpace, Store, StoreError


class Registry:
    """Accepts keepalives while `run` is running.

    `outcomes` counts them: `refreshed`, `written`, or the name of the refusal. `news` is set when
    there is something new to see of `senders` or `quota`.
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
        """`ttl` returns the tier's in seconds, `leader` the leader's name."""
        self.outcomes: Counter[str] = Counter()
        self.news = asyncio.Event()
        self.queue = WriteQueue()
        self.quota = Quota(bounds, mirror, news=self.news)
        self.senders = Senders(store, mirror.live, ttl=ttl, news=self.news)
        self._mirror = mirror
        self._ttl = ttl
        self._leader = leader
        self._leases = Leases(store, ttl=ttl)
        self.writer = Writer(
            store,
            records,
            mirror,
            queue=self.queue,
            leases=self._leases,
            quota=self.quota,
            senders=self.senders,
            ttl=ttl,
        )

    async def run(self) -> None:
        """Refresh and write until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._leases.run())
            group.create_task(self.writer.run())

    async def ping(self, raw: str | bytes, sender: Sender = UNKNOWN) -> dict[str, JSON]:
        """Accept one keepalive, the JSON text; returns the acknowledgement once the store has it.

        Returns `seq` (None after the deregistration of an unknown pod), `ttl` in seconds, and
        `leader`. Raises `Refused`: `InvalidRecord`, `Conflict`, `Stale`, `Gone`; `TooManyPods`,
        `TooManyBytes`, `TooManyJoins`, see `quota`; `NotWritten` if the pod's lease was refreshed
        and its change could not be written; else `Unavailable`.
        """
        try:
            record = parse_keepalive(raw)
            seq, ttl, outcome = await self._accept(record, len(raw), sender)
        except BadRecord as error:
            refused = Refused("InvalidRecord", str(error))
        except Refused as error:
            refused = error
        else:
            self.outcomes[outcome] += 1
            return {"seq": seq, "ttl": ttl, "leader": self._leader()}
        self.outcomes[refused.name] += 1
        raise refused

    async def _accept(
        self, record: Keepalive, size: int, sender: Sender
    ) -> tuple[int | None, float, str]:
        """Refresh the pod's lease, and write what is new; returns `seq`, TTL and outcome."""
        current = self._mirror.cache.current
        live = self._mirror.live(record.key)
        known: int | None = None
        refresh: LeaseRefresh | None = None
        try:
            refresh = self._refresh(record, live)
            if refresh is not None and live is not None and unchanged(record, live):
                known = None if self._mirror.elsewhere(record) else live.pod.seq
            async with asyncio.timeout(_timeout(self._ttl(), current=current)):
                if refresh is not None and known is not None:
                    await refresh.answer()
                    if current and not self._leases.unfit(refresh):
                        return known, self._leases.acknowledge(refresh), "refreshed"
                urgent = known is None
                return await self._write(record, size, refresh, urgent=urgent, sender=sender)
        except (StoreError, TimeoutError) as error:
            if refresh is not None and refresh.ttl:  # the pod lives
                if known is None:
                    raise _not_written(record, error) from None
                if current:  # all that it waits for is a lease of another TTL
                    return known, self._leases.acknowledge(refresh), "refreshed"
            raise _unavailable(error) from None

    def _refresh(self, record: Keepalive, live: Live | None) -> LeaseRefresh | None:
        """Begin the refresh of the pod's lease, and of one that the mirror does not show yet."""
        if record.down or (live is not None and not proves_alive(record, live)):
            return None
        granted = self._leases.granted(record, 0 if live is None else live.lease)
        if granted:
            self._leases.refresh(granted)
        return None if live is None else self._leases.refresh(live.lease)

    async def _write(
        self,
        record: Keepalive,
        size: int,
        refresh: LeaseRefresh | None,
        *,
        urgent: bool,
        sender: Sender,
    ) -> tuple[int | None, float, str]:
        """Have a keepalive written, and its lease refreshed unless it was granted just now."""
        while True:
            entry = self.queue.add(record, size, refresh, urgent=urgent, sender=sender)
            written = await entry.written()
            if written.granted or not written.lease:
                return written.seq, written.granted or self._ttl(), "written"
            if refresh is None or refresh.lease != written.lease:
                refresh = self._leases.refresh(written.lease)
            await refresh.answer()
            if not self._leases.unfit(refresh):
                return written.seq, self._leases.acknowledge(refresh), "written"


def _timeout(ttl: float, *, current: bool) -> float:
    """Seconds for the store to answer: less than an agent waits, few if it is away."""
    return min(4.0, ttl / 7) if current else min(1.0, ttl / 20)


def _not_written(record: Keepalive, error: Exception) -> Refused:
    why = str(error) or "no answer in time"
    alive = f"pod {record.id} is alive: its lease was refreshed"
    return Refused("NotWritten", f"{alive}; its change is not in etcd yet: {why}")


def _unavailable(error: Exception) -> Refused:
    why = str(error) or "not in time"
    what, fix = f"this master has no answer from etcd ({why})", "try another, or again"
    if isinstance(error, NoSpace):
        what = f"etcd is full: no pod can join or deregister ({why})"
        fix = "`kontrol status` on a master shows how to free its space"
    return Refused("Unavailable", f"{what}; {fix}")
