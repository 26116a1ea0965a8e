"""The queue of keepalives that wait to be written. What says something new goes first.

A later keepalive of a process takes the place of its earlier one. So a store that is slow, or
refuses writes, finds one entry for each process here, however often that reported.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from kontrol.ensemble.pod import Keepalive
from kontrol.master.registry.admission import Decision, Nothing, View
from kontrol.master.registry.conflicts import UNKNOWN, Sender
from kontrol.master.registry.leases import LeaseRefresh
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import StoreError, Unavailable

_BATCH = 16  # keepalives; one is at most 3 + 2 * 2 operations, and a transaction takes 128
_BATCH_BYTES = 900 * 1024  # of records; a request may be 1.5 MiB
_WAITING = 20_000  # keepalives that may wait


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a keepalive: its `seq`, None if it has none, and the pod's lease, 0 if none.

    `granted` is the TTL of a lease that was granted just now and needs no refresh, else 0.
    """

    seq: int | None
    lease: int = 0
    granted: float = 0.0


@dataclass(slots=True, eq=False)
class Entry:
    """A keepalive that waits to be written.

    `name` is its key, id, nonce, and whether it is urgent. `reported` is the loop time at which it
    was last reported, by `sender`. `refresh` is that of its pod's lease; `lease` is one granted for
    it, when the tier's TTL was `ttl`. `view` is what the store had for it at the last look, and
    `decision` what was decided on that.
    """

    name: tuple[str, str, str, bool]
    record: Keepalive
    size: int
    refresh: LeaseRefresh | None
    reported: float
    answer: "asyncio.Future[Written | Refused | StoreError]"
    sender: Sender = UNKNOWN
    view: View = field(default_factory=View)
    decision: Decision = field(default_factory=Nothing)
    lease: int = 0
    ttl: float = 0.0

    async def written(self) -> Written:
        """Wait for the answer, which others may wait for too. Raises `Refused`, `StoreError`."""
        answer = await asyncio.shield(self.answer)
        if isinstance(answer, Written):
            return answer
        raise answer

    def longest_ttl(self, ttl: float) -> float:
        """Return the longest TTL that its agent may rely on, where the tier's is `ttl`."""
        return max(ttl, self.refresh.ttl or 0) if self.refresh is not None else ttl

    def settle(self, answer: Written | Refused | StoreError) -> None:
        """Give the answer, unless there is one."""
        if not self.answer.done():
            self.answer.set_result(answer)


class WriteQueue:
    """Two queues: `urgent` entries say something new, the others are to be confirmed."""

    def __init__(self) -> None:
        self._queues: tuple[deque[Entry], deque[Entry]] = (deque(), deque())
        self._entries: dict[tuple[str, str, str, bool], Entry] = {}
        self._some = asyncio.Event()

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def __iter__(self) -> Iterator[Entry]:
        return (entry for queue in self._queues for entry in queue)

    def add(
        self,
        record: Keepalive,
        size: int,
        refresh: LeaseRefresh | None,
        *,
        urgent: bool,
        sender: Sender = UNKNOWN,
    ) -> Entry:
        """Add one keepalive of `size` bytes. Raises `Unavailable` if too many wait."""
        loop = asyncio.get_running_loop()
        # A deregistration has an entry of its own: no earlier keepalive may come after it.
        name = (record.key, record.id, record.nonce, urgent)
        entry = None if record.down else self._entries.get(name)
        if entry is not None and (entry.record.n or 0) <= (record.n or 0):
            entry.record, entry.size, entry.refresh = record, size, refresh
            entry.reported, entry.sender = loop.time(), sender
            return entry
        if len(self) >= _WAITING:
            raise Unavailable(f"{_WAITING} keepalives wait to be written")
        entry = Entry(name, record, size, refresh, loop.time(), loop.create_future(), sender)
        if not record.down:
            self._entries.setdefault(name, entry)
        self._queues[not urgent].append(entry)
        self._some.set()
        return entry

    async def take(self, ttl: float) -> list[Entry]:
        """Wait for entries, and take some of which no two have the same key or id.

        Entries that were not reported again within half the TTL are given up: their pods may be
        gone. (An agent without an answer reports again within TTL/6 + TTL/8.)
        """
        await self._some.wait()
        now = asyncio.get_running_loop().time()
        batch: list[Entry] = []
        taken: set[tuple[str, str]] = set()
        size = 0
        for queue in self._queues:
            while queue and len(batch) < _BATCH:
                entry = queue[0]
                names = {("id", entry.record.id), ("key", entry.record.key)}
                size += 2 * entry.size
                if batch and (taken & names or size > _BATCH_BYTES):
                    return batch
                queue.popleft()
                if self._entries.get(entry.name) is entry:
                    del self._entries[entry.name]
                if now - entry.reported > entry.longest_ttl(ttl) / 2:
                    entry.settle(Unavailable("it was not written in time"))
                    continue
                taken |= names
                batch.append(entry)
        if not len(self):
            self._some.clear()
        return batch
