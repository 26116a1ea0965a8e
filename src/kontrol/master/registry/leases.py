"""The leases of pods: their refreshes under way, and their TTL.

Refreshes belong to the registry, not to the keepalives that begin them. So a refresh goes on when
its keepalive's time is up, and a pod that reports is kept alive however long etcd takes to answer.

A pod keeps the lease that it was granted, so its TTL may not be the tier's any more. One with a
shorter TTL is replaced at once. One with a longer TTL is replaced only after its pod was told the
shorter one: until then the pod relies on what it was told, and reports as seldom as that.

Invariant: at most two refreshes of a lease are under way, so there are no more than twice the pods.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from kontrol.store.protocol import Store, StoreError, Unavailable

# One could be held up for longer than the lease lives, while the pod goes on reporting.
_UNDER_WAY = 2  # refreshes of one lease
_TOLD = 100_000  # leases that are remembered until they are replaced
_ENDED = "this master is shutting down"


@dataclass(slots=True, eq=False)
class LeaseRefresh:
    """The refresh of one lease.

    `ttl` is the one that the lease was granted, 0 if it is gone; None without an answer so far.
    """

    lease: int
    task: "asyncio.Task[None]" = field(init=False)
    ttl: int | None = None
    error: StoreError | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self) -> int:
        """Return the TTL that the lease was granted, 0 if it is gone. Raises `StoreError`."""
        await self.done.wait()
        if self.ttl is None:
            raise self.error or Unavailable(_ENDED)
        return self.ttl


class Leases:
    """Refreshes and grants leases; whatever is begun ends with `run`, at the latest."""

    def __init__(self, store: Store, *, ttl: Callable[[], float]) -> None:
        """`ttl` tells the tier's, in seconds."""
        self._store = store
        self._ttl = ttl
        self._under_way: dict[int, list[LeaseRefresh]] = {}
        self._ended = False
        self._granted: dict[int, int] = {}
        self._told: dict[int, float] = {}
        self._revoking: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Own the refreshes, until cancelled; then end them."""
        try:
            await asyncio.Event().wait()
        finally:
            self._ended = True
            left = {each.task: each for some in self._under_way.values() for each in some}
            tasks = self._revoking | left.keys()
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            for refresh in left.values():
                refresh.done.set()

    def refresh(self, lease: int) -> LeaseRefresh:
        """Send a refresh of `lease` at once, unless two are under way: then return the later.

        Raises `Unavailable` if `run` has ended.
        """
        if self._ended:
            raise Unavailable(_ENDED)
        under_way = self._under_way.setdefault(lease, [])
        if len(under_way) == _UNDER_WAY:
            return under_way[-1]
        refresh = LeaseRefresh(lease)
        refresh.task = asyncio.create_task(self._refresh(refresh))
        under_way.append(refresh)
        return refresh

    async def _refresh(self, refresh: LeaseRefresh) -> None:
        try:
            refresh.ttl = await self._store.refresh(refresh.lease)
        except StoreError as error:
            refresh.error = error
        under_way = self._under_way[refresh.lease]
        under_way.remove(refresh)
        if not under_way:
            del self._under_way[refresh.lease]
        refresh.done.set()

    async def grant(self) -> tuple[int, float]:
        """Grant a lease of the tier's TTL; returns its id and that TTL. Raises `StoreError`."""
        ttl = self._ttl()
        lease = await self._store.grant(math.ceil(ttl))
        self._granted[math.ceil(ttl)] = lease.ttl
        return lease.id, ttl

    def revoke(self, lease: int) -> None:
        """Begin to revoke a lease that was replaced, and that no key has any more.

        A master that has not seen the replacement would refresh it, and answer with its TTL, while
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
        had, today = refresh.ttl, self._today
        if had is None or had <= today:
            return had is not None and had < today
        return self._told.get(refresh.lease, math.inf) <= self._ttl()

    def tell(self, refresh: LeaseRefresh) -> float:
        """Return the TTL to tell to the pod under this lease, which lives; remembers that."""
        had, ttl = refresh.ttl or 0, self._ttl()
        if had < self._today:
            return min(had, ttl)
        if had > self._today:
            if len(self._told) >= _TOLD:
                self._told.clear()  # those are told once more
            self._told[refresh.lease] = ttl
        return ttl

    @property
    def _today(self) -> int:
        """The TTL of a lease that is granted now; etcd has a least one, which may be longer."""
        asked = math.ceil(self._ttl())
        return self._granted.get(asked, asked)
