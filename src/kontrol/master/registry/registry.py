"""The registry: keepalives in, pods in the store out, acknowledged once the store has them.

A keepalive takes one path:

0. If its bytes are those of one that said nothing new, and the mirror shows what it showed then,
   the refresh of the pod's lease is all: see `known`. Most keepalives end here, unread.
1. If the mirror has a live record that it proves alive, the refresh of that record's lease begins
   before anything else: a pod that reports stays alive however full or slow the store is.
2. If it says nothing new, the refresh is all. No write, and no decision.
3. Everything else waits in the queue for the one `Writer`, which looks at the store, decides on
   what it has, and commits that.
4. It is acknowledged when the lease that the pod then has was refreshed, or granted for it. Then
   its live facts are written in their own time, see `facts`.

The lease's TTL is the tier's. A lease that was granted another TTL (the setting has changed since)
is replaced by 3, see `leases`; until then the shorter of the two is acknowledged.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial

from kontrol.ensemble.canonical import JSON, NotJSON
from kontrol.ensemble.live import parse_live, split
from kontrol.ensemble.pod import BadRecord, Keepalive, parse_keepalive
from kontrol.master.mirror import Mirror
from kontrol.master.records.pods import Live
from kontrol.master.records.records import Records
from kontrol.master.registry.admission import proves_alive, unchanged
from kontrol.master.registry.conflicts import UNKNOWN, Sender
from kontrol.master.registry.facts import FactsWriter, Reported
from kontrol.master.registry.known import KnownText, KnownTexts
from kontrol.master.registry.leases import UNDER_WAY, LeaseRefresh, Leases
from kontrol.master.registry.queue import Crowded, WriteQueue
from kontrol.master.registry.quota import Bounds, Quota
from kontrol.master.registry.senders import Senders
from kontrol.master.registry.waiting import Waiting
from kontrol.master.registry.writer import Writer
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import NoSpace, Store, StoreError

_AWAY = 1.0  # seconds without an answer


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
        ttl_known: Callable[[], bool],
        leader: Callable[[], str | None],
        bounds: Bounds,
    ) -> None:
        """`ttl` returns the tier's in seconds, once `ttl_known`; `leader` the leader's name."""
        self.outcomes: Counter[str] = Counter()
        self.news = asyncio.Event()
        self.queue = WriteQueue()
        self.quota = Quota(bounds, mirror, news=self.news)
        self.senders = Senders(store, mirror.live, ttl=ttl, news=self.news)
        self._mirror = mirror
        self._ttl = ttl
        self._leader = leader
        self._known = KnownTexts(mirror, records.keys.pods)
        self.facts = FactsWriter(store, records.keys, ttl=ttl)
        mirror.cache.on_restore(lambda _: self.facts.forget())
        self._waiting: Waiting[dict[str, JSON] | None] = Waiting(self._late)
        self._leases = Leases(store, ttl=ttl, ttl_known=ttl_known)
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
            group.create_task(self.facts.run())

    async def ping(self, raw: str | bytes, sender: Sender = UNKNOWN) -> dict[str, JSON]:
        """Accept one keepalive, the JSON text; returns the acknowledgement once the store has it.

        Returns `seq` (None after the deregistration of an unknown pod), `ttl` in seconds, `leader`,
        and `live`: that this master takes live facts; and `age` in seconds, if the lease was
        refreshed for an earlier keepalive too: it counts from up to so long before this one came.
        Raises `Refused`: `InvalidRecord`, `Conflict`, `Stale`, `Gone`; `TooManyPods`,
        `TooManyBytes`, `TooManyJoins`, see `quota`; `NotWritten` if the pod's lease was refreshed
        and its change could not be written, or if too many wait to be written before it; else
        `Unavailable`.
        """
        text = raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass")
        known = self.refresh_known(text)
        if known is not None and (acknowledged := await known) is not None:
            return acknowledged
        try:
            record = parse_keepalive(raw)
            seq, ttl, outcome, age = await self._accept(record, text, sender)
        except BadRecord as error:
            refused = Refused("InvalidRecord", str(error))
        except Refused as error:
            refused = error
        else:
            return self._acknowledged(seq, ttl, outcome, age)
        self.outcomes[refused.name] += 1
        raise refused

    def refresh_known(self, text: bytes) -> "asyncio.Future[dict[str, JSON] | None] | None":
        """Accept a keepalive, the bytes of its JSON text, if it is known to say nothing new.

        None if it is not known: `ping` accepts it, or refuses it. The future has what `ping`
        returns; None if the lease is gone, or is to be replaced, and `ping` has to be called; or it
        raises `Refused`, as `ping` does. It may be cancelled.
        """
        text, live = split(text)
        known = self._known.find(text)
        if known is None or known.waiting == UNDER_WAY or not self._mirror.cache.current:
            return None
        if self._leases.granted(known.key, known.id, known.lease):
            return None  # the mirror lags behind
        if live != known.live:
            if live and not _valid(live):
                return None
            known.live = live
        try:
            refresh = self._leases.refresh(known.lease)
        except StoreError:
            return None
        answer = self._waiting.add(_timeout(self._ttl(), away=False))
        known.waiting += 1
        refresh.then(partial(self._refreshed, known, live, refresh, answer))
        return answer

    def _refreshed(
        self,
        known: KnownText,
        live: bytes,
        refresh: LeaseRefresh,
        answer: "asyncio.Future[dict[str, JSON] | None]",
    ) -> None:
        known.waiting -= 1
        if answer.done():
            return
        error = refresh.error
        if isinstance(error, StoreError):
            self.outcomes["Unavailable"] += 1
            answer.set_exception(_unavailable(error))
        elif error is not None:
            answer.set_exception(error)
        elif self._leases.unfit(refresh):
            answer.set_result(None)
        else:
            ttl = self._leases.acknowledge(refresh)
            self.facts.report(known.key, Reported(known.id, known.nonce, known.lease, live))
            answer.set_result(self._acknowledged(known.seq, ttl, "refreshed", refresh.age))

    def _late(self, answer: "asyncio.Future[dict[str, JSON] | None]") -> None:
        """Refuse a keepalive whose refresh has no answer in time."""
        self.outcomes["Unavailable"] += 1
        answer.set_exception(_unavailable(TimeoutError()))

    def _acknowledged(
        self, seq: int | None, ttl: float, outcome: str, age: float | None
    ) -> dict[str, JSON]:
        self.outcomes[outcome] += 1
        answer: dict[str, JSON] = {"seq": seq, "ttl": ttl, "leader": self._leader(), "live": True}
        if age is not None:
            answer["age"] = age
        return answer

    async def _accept(
        self, record: Keepalive, text: bytes, sender: Sender
    ) -> tuple[int | None, float, str, float | None]:
        """Refresh the pod's lease, and write what is new; returns `seq`, TTL, outcome and age."""
        current = self._mirror.cache.current
        live = self._mirror.live(record.key)
        timeout = _timeout(self._ttl(), away=not current and not self._answers(_AWAY))
        known: int | None = None
        refresh: LeaseRefresh | None = None
        try:
            refresh = self._refresh(record, live)
            if refresh is not None and live is not None and self._says_nothing_new(record, live):
                known = live.pod.seq
                self._known.learn(split(text)[0] if record.live else text, live)
            async with asyncio.timeout(timeout):
                if refresh is not None and known is not None:
                    await refresh.answer()
                    if current and not self._leases.unfit(refresh):
                        self._report(record, refresh.lease)
                        return known, self._leases.acknowledge(refresh), "refreshed", refresh.age
                urgent = known is None
                return await self._write(record, len(text), refresh, urgent=urgent, sender=sender)
        except (StoreError, TimeoutError) as error:
            if refresh is not None and refresh.ttl:  # the pod lives
                if known is None:
                    raise _not_written(record, error) from None
                if current:  # all that it waits for is a lease of another TTL
                    return known, self._leases.acknowledge(refresh), "refreshed", refresh.age
            elif isinstance(error, TimeoutError | Crowded) and self._writes(timeout):
                raise _waits(record, len(self.queue)) from None
            raise _unavailable(error) from None

    def _writes(self, seconds: float) -> bool:
        """Tell whether etcd has written anything within less than so many seconds.

        Then what waits only waits for its turn. At another master, it would wait again.
        """
        return self.writer.wrote > asyncio.get_running_loop().time() - seconds

    def _answers(self, seconds: float) -> bool:
        """Tell whether etcd has answered within so many seconds, also if the mirror is behind.

        A master that has too little to do its work by falls behind, and has to wait the longer.
        """
        last = max(self._leases.answered, self.writer.wrote)
        return last > asyncio.get_running_loop().time() - seconds

    def _says_nothing_new(self, record: Keepalive, live: Live) -> bool:
        return unchanged(record, live) and not self._mirror.elsewhere(record)

    def _refresh(self, record: Keepalive, live: Live | None) -> LeaseRefresh | None:
        """Begin the refresh of the pod's lease, and of one that the mirror does not show yet."""
        if record.down or (live is not None and not proves_alive(record, live)):
            return None
        shown = 0 if live is None else live.lease
        granted = self._leases.granted(record.key, record.id, shown)
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
    ) -> tuple[int | None, float, str, float | None]:
        """Have a keepalive written, and its lease refreshed unless it was granted just now."""
        while True:
            entry = self.queue.add(record, size, refresh, urgent=urgent, sender=sender)
            written = await entry.written()
            if written.granted or not written.lease:
                self._report(record, written.lease)
                return written.seq, written.granted or self._ttl(), "written", None
            if refresh is None or refresh.lease != written.lease:
                refresh = self._leases.refresh(written.lease)
            await refresh.answer()
            if not self._leases.unfit(refresh):
                self._report(record, written.lease)
                return written.seq, self._leases.acknowledge(refresh), "written", refresh.age

    def _report(self, record: Keepalive, lease: int) -> None:
        """Have the live facts of an accepted keepalive written."""
        if lease and not record.down:
            text = (record.live or "").encode()
            self.facts.report(record.key, Reported(record.id, record.nonce, lease, text))


def _valid(live: bytes) -> bool:
    try:
        parse_live(live)
    except NotJSON:
        return False
    return True


def _timeout(ttl: float, *, away: bool) -> float:
    """Seconds for the store to answer: less than an agent waits, few if it is away."""
    return min(_AWAY, ttl / 20) if away else min(4.0, ttl / 7)


def _not_written(record: Keepalive, error: Exception) -> Refused:
    why = str(error) or "no answer in time"
    alive = f"pod {record.id} is alive: its lease was refreshed"
    return Refused("NotWritten", f"{alive}; its change is not in etcd yet: {why}")


def _waits(record: Keepalive, waiting: int) -> Refused:
    # An agent takes this as an answer: it keeps its connection, and comes again at a random time.
    why = f"pod {record.id} is not in etcd yet: {waiting} keepalives wait to be written"
    return Refused("NotWritten", f"{why}; it is accepted when its turn has come")


def _unavailable(error: Exception) -> Refused:
    why = str(error) or "not in time"
    what, fix = f"this master has no answer from etcd ({why})", "try another, or again"
    if isinstance(error, NoSpace):
        what = f"etcd is full: no pod can join or deregister ({why})"
        fix = "`kontrol status` on a master shows how to free its space"
    return Refused("Unavailable", f"{what}; {fix}")
