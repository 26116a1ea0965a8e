"""The leases of pods: their refreshes under way, those granted lately, and their TTL.

Refreshes belong to the registry, not to the keepalives that begin them. So a refresh goes on when
its keepalive has timed out, and a pod that reports stays alive however long etcd takes to answer.

A pod keeps the lease that it was granted, so that lease's TTL may no longer be the tier's. One with
a shorter TTL is replaced immediately. One with a longer TTL is replaced only after the shorter one
was acknowledged to its pod: until then the pod relies on the longer one, and reports that rarely.

Invariant: at most two refreshes of a lease are under way, so there are at most twice as many as
pods.
"""

import asyncio
import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kontrol.ensemble.pod import Keepalive
from kontrol.store.protocol import Store, StoreError, Unavailable

# A single one could take longer than the lease lives, while the pod goes on reporting.
UNDER_WAY = 2  # refreshes of one lease
_ACKNOWLEDGED = 100_000  # leases that are remembered until they are replaced
_UNSEEN = 30.0  # seconds for the mirror to show the pod under a lease that was granted
_ENDED = "this master is shutting down"


@dataclass(slots=True, eq=False)
class LeaseRefresh:
    """The refresh of one lease.

    `ttl` is the lease's granted TTL in seconds, 0 if it is gone; None before there is an answer,
    and where there is an `error` in its place. `begun` is the loop time at which it began, if
    keepalives that come later may wait for it, too.
    """

    lease: int
    ttl: int | None = None
    error: BaseException | None = None
    under_way: "asyncio.Future[int] | None" = None
    begun: float | None = None
    waiting: list[Callable[[], None]] = field(default_factory=list)

    @property
    def age(self) -> float | None:
        """By how many seconds it may have begun before a keepalive that it answers now came."""
        return None if self.begun is None else asyncio.get_running_loop().time() - self.begun

    @property
    def ended(self) -> bool:
        """Whether there is an answer, or an error."""
        return self.ttl is not None or self.error is not None

    def then(self, call: Callable[[], None]) -> None:
        """Call this once it has ended."""
        if self.ended:
            call()
        else:
            self.waiting.append(call)

    async def answer(self) -> int:
        """Return the lease's granted TTL in seconds, 0 if it is gone. Raises `StoreError`."""
        if not self.ended:
            ended = asyncio.Event()
            self.then(ended.set)
            await ended.wait()
        if self.ttl is None:
            raise self.error or Unavailable(_ENDED)
        return self.ttl

    def end(self, ttl: int | None, error: BaseException | None = None) -> None:
        """Note the answer, or the error."""
        self.ttl, self.error = ttl, error
        for call in self.waiting:
            call()
        self.waiting.clear()


class Leases:
    """Refreshes, grants and revokes leases. What is under way ends with `run` at the latest."""

    def __init__(
        self,
        store: Store,
        *,
        ttl: Callable[[], float],
        ttl_known: Callable[[], bool],
    ) -> None:
        """`ttl` returns the tier's, in seconds: this master's own until `ttl_known`."""
        self.answered = -math.inf
        """The loop time at which etcd last answered a refresh."""
        self._store = store
        self._ttl = ttl
        self._ttl_known = ttl_known
        self._under_way: dict[int, list[LeaseRefresh]] = {}
        self._ended = False
        self._chosen: dict[int, int] = {}  # what etcd granted, by what was asked for
        self._acknowledged: dict[int, float] = {}
        self._revoking: set[asyncio.Task[None]] = set()
        self._granted: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    async def run(self) -> None:
        """Own what is under way until cancelled, then end it."""
        try:
            await asyncio.Event().wait()
        finally:
            self._ended = True
            refreshes = (each for some in self._under_way.values() for each in some)
            left: list[asyncio.Future[Any]] = [
                *self._revoking,
                *(each.under_way for each in refreshes if each.under_way is not None),
            ]
            for each in left:
                each.cancel()
            if left:
                await asyncio.wait(left)

    def refresh(self, lease: int) -> LeaseRefresh:
        """Begin a refresh of `lease`, unless two are under way: then return the later of them.

        It costs no task where the store returns a future. Raises `Unavailable` if `run` has ended.
        """
        if self._ended:
            raise Unavailable(_ENDED)
        under_way = self._under_way.get(lease)
        if under_way is None:
            under_way = self._under_way[lease] = []
            refresh = LeaseRefresh(lease)
        elif len(under_way) == UNDER_WAY:
            return under_way[-1]
        else:
            refresh = LeaseRefresh(lease, begun=asyncio.get_running_loop().time())
        under_way.append(refresh)
        try:
            refresh.under_way = asyncio.ensure_future(self._store.refresh(lease))
        except StoreError as error:
            self._remove(refresh)
            refresh.end(None, error)
        else:
            refresh.under_way.add_done_callback(partial(self._answered, refresh))
        return refresh

    def _answered(self, refresh: LeaseRefresh, answer: "asyncio.Future[int]") -> None:
        self._remove(refresh)
        if answer.cancelled():
            refresh.end(None, Unavailable(_ENDED))
        elif (error := answer.exception()) is not None:
            refresh.end(None, error)
        else:
            self.answered = asyncio.get_running_loop().time()
            refresh.end(answer.result())

    def _remove(self, refresh: LeaseRefresh) -> None:
        under_way = self._under_way[refresh.lease]
        under_way.remove(refresh)
        if not under_way:
            del self._under_way[refresh.lease]

    async def grant(self, record: Keepalive) -> tuple[int, float]:
        """Grant a lease to a pod; returns its id, and the tier's TTL that it is of.

        A lease that is not used expires by itself. Raises `StoreError`; also before it is known
        who leads, whose TTL it is.
        """
        if not self._ttl_known():
            raise Unavailable("the TTL of the leader is not known yet")
        ttl, now = self._ttl(), asyncio.get_running_loop().time()
        lease = await self._store.grant(math.ceil(ttl))
        self._chosen[math.ceil(ttl)] = lease.ttl
        self._granted[record.key, record.id] = lease.id, now
        self._granted.move_to_end((record.key, record.id))
        while now - next(iter(self._granted.values()))[1] >= _UNSEEN:
            self._granted.popitem(last=False)
        return lease.id, ttl

    def granted(self, key: str, id_: str, shown: int) -> int:
        """Return the lease that was granted to this pod lately, and is not the one `shown`.

        0 if there is none. `shown` is what the mirror has for the pod.
        """
        name = key, id_
        lease, at = self._granted.get(name, (0, 0.0))
        if lease and lease == shown:
            del self._granted[name]
        live = lease != shown and asyncio.get_running_loop().time() - at < _UNSEEN
        return lease if live else 0

    def revoke(self, lease: int) -> None:
        """Begin to revoke a lease that was replaced, and that no key has any more.

        A master that has not seen the replacement would refresh it, and acknowledge its TTL, while
        the pod's new lease expires. So it finds the lease gone, and reads what the store has.
        """
        if not self._ended:
            task = asyncio.create_task(self._revoke(lease))
            self._revoking.add(task)
            task.add_done_callback(self._revoking.discard)

    async def _revoke(self, lease: int) -> None:
        with contextlib.suppress(StoreError):  # it then expires
            await self._store.revoke(lease)

    def unfit(self, refresh: LeaseRefresh) -> bool:
        """Tell whether a pod needs another lease than this one, which was refreshed."""
        has, today = refresh.ttl, self._today
        if has is None or has <= today:
            return has is not None and has < today
        return self._acknowledged.get(refresh.lease, math.inf) <= self._ttl()

    def acknowledge(self, refresh: LeaseRefresh) -> float:
        """Return the TTL to acknowledge to the pod of this live lease, and remember that."""
        has, ttl = refresh.ttl or 0, self._ttl()
        if has < self._today:
            return min(has, ttl)
        if has > self._today:
            if len(self._acknowledged) >= _ACKNOWLEDGED:
                self._acknowledged.clear()  # those are acknowledged once more
            self._acknowledged[refresh.lease] = ttl
        return ttl

    @property
    def _today(self) -> int:
        """The TTL of a lease that is granted now; etcd has a minimum, which may be longer."""
        asked = math.ceil(self._ttl())
        return self._chosen.get(asked, asked)
