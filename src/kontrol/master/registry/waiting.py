"""Keepalives that wait to be written, in order, and who keeps asking for what is refused.

What says something new goes first.

A later keepalive of a process takes the place of its earlier one, so that a store that is slow, or
refuses writes, finds one entry a process here, and not one for each time that it reported.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from kontrol.ensemble.pod import Keepalive
from kontrol.master.registry.admission import Decision, Nothing, View
from kontrol.master.registry.conflicts import NOBODY, Sender
from kontrol.master.registry.leases import LeaseRefresh
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import StoreError, Unavailable

_BATCH = 16  # keepalives; one is at most 3 + 2 * 2 operations, and a transaction takes 128
_BATCH_BYTES = 900 * 1024  # of records; a request may be 1.5 MiB
_WAITING = 20_000  # keepalives that may wait
_ASKING = 20_000  # senders of refused keepalives that are remembered
_ASKS = 3  # keepalives, over at least TTL/4: a late message does not do that


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a keepalive: its `seq`, None if it has none, and the pod's lease, 0 if none.

    `granted` is the TTL for which the lease was granted just now: it needs no refresh. 0 if it was
    not.
    """

    seq: int | None
    lease: int = 0
    granted: float = 0.0


@dataclass(slots=True, eq=False)
class Entry:
    """A keepalive that waits to be written, for whoever awaits its answer.

    `name` is its key, id, nonce, and whether it is urgent. `asked` is the loop time at which it was
    last reported, by `sender`. `refresh` is that of its pod's lease; `lease` one granted for it,
    with the tier's `ttl` then.
    """

    name: tuple[str, str, str, bool]
    record: Keepalive
    size: int
    refresh: LeaseRefresh | None
    asked: float
    answer: "asyncio.Future[Written | Refused | StoreError]"
    sender: Sender = NOBODY
    view: View = field(default_factory=View)
    decision: Decision = field(default_factory=Nothing)
    lease: int = 0
    ttl: float = 0.0

    def ttl_told(self, ttl: float) -> float:
        """Return the longest TTL that its agent may go by, where the tier's is `ttl`."""
        return max(ttl, self.refresh.ttl or 0) if self.refresh is not None else ttl

    def settle(self, answer: Written | Refused | StoreError) -> None:
        """Give the answer, unless there is one."""
        if not self.answer.done():
            self.answer.set_result(answer)


class Waiting:
    """The two queues: `urgent` is what says something new, the rest is to be confirmed."""

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
        sender: Sender = NOBODY,
    ) -> Entry:
        """Take one keepalive of `size` bytes. Raises `Unavailable` if too many wait."""
        loop = asyncio.get_running_loop()
        # A deregistration has a place of its own: no earlier keepalive may come after it.
        name = (record.key, record.id, record.nonce, urgent)
        entry = None if record.down else self._entries.get(name)
        if entry is not None and (entry.record.n or 0) <= (record.n or 0):
            entry.record, entry.size, entry.refresh = record, size, refresh
            entry.asked, entry.sender = loop.time(), sender
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
        """Wait for entries, and take some of which no two touch the same key or id.

        What was not reported again within half the TTL is given up: its pod may be gone. (One that
        fails to get an answer reports again within TTL/6 + TTL/8.)
        """
        await self._some.wait()
        now = asyncio.get_running_loop().time()
        batch: list[Entry] = []
        touched: set[tuple[str, str]] = set()
        size = 0
        for queue in self._queues:
            while queue and len(batch) < _BATCH:
                entry = queue[0]
                names = {("id", entry.record.id), ("key", entry.record.key)}
                size += 2 * entry.size
                if batch and (touched & names or size > _BATCH_BYTES):
                    return batch
                queue.popleft()
                if self._entries.get(entry.name) is entry:
                    del self._entries[entry.name]
                if now - entry.asked > entry.ttl_told(ttl) / 2:
                    entry.settle(Unavailable("it was not written in time"))
                    continue
                touched |= names
                batch.append(entry)
        if not len(self):
            self._some.clear()
        return batch


class Asking:
    """Who keeps asking for what is refused: key, id and nonce of a living process."""

    def __init__(self) -> None:
        # First and last time, and how often; in the order of the last.
        self._asked: OrderedDict[tuple[str, str, str], tuple[float, float, int]] = OrderedDict()

    def asks(self, who: tuple[str, str, str], now: float, ttl: float) -> bool:
        """Note that `who` asks; returns whether it keeps asking. Times in seconds.

        Who did not ask for a TTL is forgotten.
        """
        while self._asked and now - next(iter(self._asked.values()))[1] > ttl:
            self._asked.popitem(last=False)
        first, _, times = self._asked.pop(who, (now, now, 0))
        self._asked[who] = first, now, times + 1
        if len(self._asked) > _ASKING:
            self._asked.popitem(last=False)
        return times + 1 >= _ASKS and now - first >= ttl / 4
