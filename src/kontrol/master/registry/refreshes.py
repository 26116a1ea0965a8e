"""Lease refreshes under way. They belong to the registry, not to the keepalives that begin them.

So a refresh goes on when its keepalive's time is up, and a pod that reports is kept alive however
long etcd takes to answer.

Invariant: at most two refreshes of a lease are under way, so there are no more than twice the pods.
"""

import asyncio
from dataclasses import dataclass

from kontrol.store.protocol import Store, StoreError, Unavailable

# One could be held up for longer than the lease lives, while the pod goes on reporting.
_MOST = 2  # of one lease under way
_ENDED = "this master is shutting down"


@dataclass(frozen=True, slots=True, eq=False)
class LeaseRefresh:
    """The refresh of one lease."""

    lease: int
    task: "asyncio.Task[int | StoreError]"

    @property
    def ttl(self) -> int | None:
        """The TTL that the lease was granted, 0 if it is gone; None without an answer so far."""
        if not self.task.done() or self.task.cancelled():
            return None
        result = self.task.result()
        return result if isinstance(result, int) else None

    async def answer(self) -> int:
        """Return the TTL that the lease was granted, 0 if it is gone. Raises `StoreError`."""
        await asyncio.wait((self.task,))
        if self.task.cancelled():
            raise Unavailable(_ENDED)
        result = self.task.result()
        if isinstance(result, StoreError):
            raise result
        return result


class Refreshes:
    """Refreshes leases; whatever is begun ends with `run`, at the latest."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._under_way: dict[int, list[LeaseRefresh]] = {}
        self._ended = False

    async def run(self) -> None:
        """Own the refreshes, until cancelled; then end them."""
        try:
            await asyncio.Event().wait()
        finally:
            self._ended = True
            tasks = [each.task for some in self._under_way.values() for each in some]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def begin(self, lease: int) -> LeaseRefresh:
        """Send a refresh of `lease` at once, unless two are under way: then return the later.

        Raises `Unavailable` if `run` has ended.
        """
        if self._ended:
            raise Unavailable(_ENDED)
        under_way = self._under_way.setdefault(lease, [])
        if len(under_way) == _MOST:
            return under_way[-1]
        refresh = LeaseRefresh(lease, asyncio.create_task(self._refresh(lease)))
        under_way.append(refresh)
        refresh.task.add_done_callback(lambda _: self._end(refresh))
        return refresh

    async def _refresh(self, lease: int) -> int | StoreError:
        try:
            return await self._store.refresh(lease)
        except StoreError as error:
            return error

    def _end(self, refresh: LeaseRefresh) -> None:
        under_way = self._under_way[refresh.lease]
        under_way.remove(refresh)
        if not under_way:
            del self._under_way[refresh.lease]
