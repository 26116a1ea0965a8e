"""The store model on the event loop: one `MemoryCluster` is etcd, each `MemoryStore` a client.

Every request and every event of a watch goes through a `Network` between the two, where a
simulation delays, loses and partitions. The default one is reliable and instant.

The cluster's own timer (leases expire without a request) runs in the context in which the cluster
was made, not in that of the client whose call set it: no fault of a client's process touches the
store.
"""

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

from tests.support.memory.core import TICK, Core, Snapshot
from tests.support.memory.requests import (
    Alarms,
    Compact,
    Grant,
    Refresh,
    Remaining,
    Request,
    Revoke,
    Txn,
)

from kontrol.store.protocol import (
    Ambiguous,
    Batch,
    Compare,
    Event,
    Lease,
    NoSpace,
    Op,
    Range,
    RangeResult,
    Restored,
    TxnResult,
    Unavailable,
    Watch,
)

_Answer = TypeVar("_Answer")


class Network(Protocol):
    """The network between one client and the cluster. It may be slow."""

    async def call(self, request: Request, do: Callable[[], _Answer]) -> _Answer:
        """Carry `request` there, `do` it, carry the answer back.

        Raises what `do` raises; `Unavailable` or `Denied` if it was not done and never will be;
        `Ambiguous` if the answer is lost, whether `do` was called, will be later, or never.
        """
        ...

    async def deliver(self) -> bool:
        """Carry what a watch has to its client; wait out a partition.

        Return whether the connection broke meanwhile: then the watch starts again after the last
        event that it handed over, as an etcd client does.
        """
        ...


class Reliable:
    """A network that is instant and loses nothing."""

    async def call(self, request: Request, do: Callable[[], _Answer]) -> _Answer:
        """Do it."""
        return do()

    async def deliver(self) -> bool:
        """Return that nothing broke."""
        return False


class MemoryCluster:
    """The server: all data, and the timer that expires leases."""

    def __init__(self, cluster: int = 1) -> None:
        self.core = Core(cluster, self.publish)
        self.watches: list[MemoryWatch] = []  # ordered: a simulation repeats exactly
        self._context = contextvars.copy_context()
        self._timer: asyncio.TimerHandle | None = None
        self._halted = False

    def compact(self, revision: int = 0) -> None:
        """Forget the history before `revision`, by default the present one."""
        self.core.compact(revision or self.core.revision)

    def snapshot(self) -> Snapshot:
        """Return all data, to be given to `restore`."""
        return self.core.snapshot()

    def restore(
        self,
        snapshot: Snapshot,
        cluster: int = 0,
        *,
        bump: int = 0,
        mark_compacted: bool = False,
    ) -> None:
        """Go back to `snapshot`, as `Core.restore` does; watches reconnect."""
        now = asyncio.get_running_loop().time()
        self.core.restore(snapshot, now, cluster, bump=bump, mark_compacted=mark_compacted)
        for watch in self.watches:
            watch.disconnect()
        self.arm()

    def halt(self) -> None:
        """Lose the quorum: no lease expires until `change_leader`; networks fail the calls."""
        self._halted = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def change_leader(self) -> None:
        """Elect another etcd leader: every lease gets its full time again."""
        self._halted = False
        self.core.change_leader(asyncio.get_running_loop().time())
        self.arm()

    def arm(self) -> None:
        """Set the timer to the look that will find the lease which expires first."""
        if self._halted or (expiry := self.core.next_expiry()) is None:
            return
        loop = asyncio.get_running_loop()
        look = math.ceil(max(expiry, loop.time()) / TICK) * TICK
        if look <= loop.time():
            look += TICK
        if self._timer is not None:
            if self._timer.when() <= look:
                return
            self._timer.cancel()
        self._timer = loop.call_at(look, self._tick, context=self._context)

    def _tick(self) -> None:
        self._timer = None
        self.core.tick(asyncio.get_running_loop().time())
        self.arm()

    def publish(self, events: tuple[Event, ...]) -> None:
        """Give the events of one revision to the open watches."""
        for watch in self.watches:
            watch.push(events)


class MemoryStore:
    """One client of a `MemoryCluster`; implements `kontrol.store.protocol.Store`."""

    def __init__(self, cluster: MemoryCluster, network: Network | None = None) -> None:
        self._cluster = cluster
        self._core = cluster.core
        self._network = network or Reliable()
        self._watches: list[MemoryWatch] = []
        self._closed = False

    async def range(self, request: Range) -> RangeResult:
        """See `Store.range`."""
        return await self._call(request, lambda _: self._core.range(request))

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        """See `Store.txn`. Raises `ValueError` if a key is written twice."""
        request = Txn(tuple(compares), tuple(then), tuple(otherwise))
        return await self._call(request, lambda _: self._core.txn(request))

    async def grant(self, ttl: int) -> Lease:
        """See `Store.grant`."""
        return await self._call(Grant(ttl), lambda now: self._core.grant(ttl, now))

    async def refresh(self, lease: int) -> int:
        """See `Store.refresh`."""
        return await self._call(Refresh(lease), lambda now: self._core.refresh(lease, now))

    async def remaining(self, lease: int) -> tuple[int, int]:
        """See `Store.remaining`."""
        return await self._call(Remaining(lease), lambda now: self._core.remaining(lease, now))

    async def revoke(self, lease: int) -> None:
        """See `Store.revoke`."""
        await self._call(Revoke(lease), lambda _: self._core.revoke(lease))

    async def alarms(self) -> tuple[str, ...]:
        """See `Store.alarms`."""
        return await self._call(Alarms(), lambda _: self._core.alarms())

    async def compact(self, revision: int) -> None:
        """Forget the history before `revision`; beyond the protocol, for tests."""
        await self._call(Compact(revision), lambda _: self._core.compact(revision))

    @asynccontextmanager
    async def watch(
        self, key: str, *, prefix: bool = False, start: int, cluster: int = 0
    ) -> AsyncIterator[Watch]:
        """See `Store.watch`."""
        watch = MemoryWatch(
            self._core, self._network, key, prefix=prefix, start=start, cluster=cluster
        )
        self._cluster.watches.append(watch)
        self._watches.append(watch)
        try:
            yield watch
        finally:
            watch.close()
            self._cluster.watches.remove(watch)
            self._watches.remove(watch)

    async def close(self) -> None:
        """See `Store.close`."""
        self._closed = True
        for watch in self._watches:
            watch.close()

    async def _call(self, request: Request, do: Callable[[float], _Answer]) -> _Answer:
        if self._closed:
            raise Unavailable("the store's client is closed")

        def at_the_cluster() -> _Answer:
            answer = do(asyncio.get_running_loop().time())
            self._cluster.arm()
            return answer

        try:
            return await self._network.call(request, at_the_cluster)
        except NoSpace:
            raise
        except Ambiguous as error:
            if isinstance(request, Txn) and request.writes:
                raise
            raise Unavailable(str(error)) from error


class MemoryWatch:
    """One open watch: what the server pushed and the client has not taken yet."""

    def __init__(
        self, core: Core, network: Network, key: str, *, prefix: bool, start: int, cluster: int
    ) -> None:
        if start < 1:
            raise ValueError(f"a watch starts at a revision of 1 or more, not at {start}")
        self._core = core
        self._network = network
        self._key = key
        self._prefix = prefix
        self._next = start
        self._position = start - 1  # a revision up to which every event was delivered
        self._cluster = cluster
        self._queue: deque[Event] = deque()
        self._asked = self._confirmed = -math.inf
        self._broken = True  # the first connection is made as every later one
        self._closed = False
        self._wake = asyncio.Event()

    def push(self, events: tuple[Event, ...]) -> None:
        """Take the events of one revision from the server."""
        if not self._broken:
            self._queue.extend(filter(self._matches, events))
            self._wake.set()

    def disconnect(self) -> None:
        """Break the connection; the next hand-over resumes it."""
        self._broken = True
        self._wake.set()

    def close(self) -> None:
        """End the iteration."""
        self._closed = True
        self._wake.set()

    async def confirm(self) -> None:
        """See `Watch.confirm`. In a partition the answer comes after it."""
        self._asked = asyncio.get_running_loop().time()
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        while True:
            self._wake.clear()
            if self._closed:
                raise StopAsyncIteration
            waiting, asked = len(self._queue), self._asked
            if not (waiting or self._broken or asked > self._confirmed):
                await self._wake.wait()
                continue
            if await self._network.deliver() or self._broken:
                self._resume()
                continue
            # Nothing is taken before the last await: a cancelled hand-over loses nothing.
            events = tuple(self._queue.popleft() for _ in range(waiting))
            self._confirmed = asked
            if events:
                self._next = events[-1].kv.mod_revision + 1
            if not self._queue:
                self._position = self._core.revision
            return Batch(events, asked)

    def _resume(self) -> None:
        if self._cluster and self._core.cluster != self._cluster:
            raise Restored(
                f"the store is cluster {self._core.cluster:x} and was {self._cluster:x}: "
                "read everything again"
            )
        if self._core.revision < self._position:
            raise Restored(
                f"the store is at revision {self._core.revision} and was at {self._position}: "
                "it was restored; read everything again"
            )
        self._queue = deque(filter(self._matches, self._core.history(self._next)))
        self._cluster = self._core.cluster
        self._broken = False

    def _matches(self, event: Event) -> bool:
        key = event.kv.key
        return key.startswith(self._key) if self._prefix else key == self._key
