"""The queue of keepalives that wait to be written. What says something new goes first.

A later keepalive of a process takes the place of its earlier one. So a store that is slow, or
refuses writes, finds one entry for each process here, however often that reported.

Several batches may be under way. Two entries with one key or one id never are: each waits in two
*lanes*, its key's and its id's, and is ready to be taken when it is the first in both. So entries
that touch are written in the order in which they came, and delay no other, however many they are.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kontrol.ensemble.pod import Keepalive
from kontrol.master.registry.admission import Decision, Nothing, View
from kontrol.master.registry.conflicts import UNKNOWN, Sender
from kontrol.master.registry.leases import LeaseRefresh
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import StoreError, Unavailable

BATCH = 63  # keepalives; one is mostly 2 operations, and a transaction takes 128
_BATCH_BYTES = 900 * 1024  # of records; a request may be 1.5 MiB
_FILL = 0.02  # seconds for a batch to fill while others are under way
_WAITING = 20_000  # keepalives that may wait

_Name = tuple[str, str]


class Crowded(Unavailable):
    """Too many keepalives wait to be written. Nothing was done."""


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
    """A keepalive that waits to be written, or is being written.

    `name` is its key, id, nonce, and whether it is urgent. `reported` is the loop time at which it
    was last reported, by `sender`. `refresh` is that of its pod's lease; `lease` is one granted for
    it, when the tier's TTL was `ttl`. `view` is what the store had for it at the last look, and
    `decision` what was decided on that. It was `taken` if it is in a batch.
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
    taken: bool = False

    @property
    def urgent(self) -> bool:
        """Whether it says something new."""
        return self.name[3]

    @property
    def lanes(self) -> tuple[_Name, _Name]:
        """The names of what no two entries may write at the same time."""
        return ("key", self.record.key), ("id", self.record.id)

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
        # Those that were ready when they were put there; an urgent one may have gone before since.
        self._ready: tuple[deque[Entry], deque[Entry]] = (deque(), deque())
        self._lanes: dict[_Name, deque[Entry]] = {}
        self._entries: dict[tuple[str, str, str, bool], Entry] = {}
        self._waiting = 0
        self._under_way = 0
        self._some = asyncio.Event()
        self._fill: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return self._waiting

    def __iter__(self) -> Iterator[Entry]:
        lanes = (lane for (kind, _), lane in self._lanes.items() if kind == "key")
        return (entry for lane in lanes for entry in lane if not entry.taken)

    def add(
        self,
        record: Keepalive,
        size: int,
        refresh: LeaseRefresh | None,
        *,
        urgent: bool,
        sender: Sender = UNKNOWN,
    ) -> Entry:
        """Add one keepalive of `size` bytes. Raises `Crowded`."""
        loop = asyncio.get_running_loop()
        # A deregistration has an entry of its own: no earlier keepalive may come after it.
        name = (record.key, record.id, record.nonce, urgent)
        entry = None if record.down else self._entries.get(name)
        if entry is not None and (entry.record.n or 0) <= (record.n or 0):
            entry.record, entry.size, entry.refresh = record, size, refresh
            entry.reported, entry.sender = loop.time(), sender
            return entry
        if self._waiting >= _WAITING:
            raise Crowded(f"{_WAITING} keepalives wait to be written")
        entry = Entry(name, record, size, refresh, loop.time(), loop.create_future(), sender)
        if not record.down:
            self._entries.setdefault(name, entry)
        self._waiting += 1
        for lane in entry.lanes:
            _line_up(self._lanes.setdefault(lane, deque()), entry)
        self._offer(entry)
        self._wake()
        return entry

    async def take(self, ttl: float) -> list[Entry]:
        """Wait for entries, and take some; the caller returns them to `done`.

        While other batches are under way, this waits until it is a full one, or for `_FILL`.
        Entries that were not reported again within half the TTL are given up: their pods may be
        gone. (An agent without an answer reports again within TTL/6 + TTL/8.)
        """
        while True:
            await self._some.wait()
            batch = self._take(ttl)
            self._under_way += len(batch)
            if self._fill is not None:
                self._fill.cancel()
                self._fill = None
            self._some.clear()
            self._wake()
            if batch:
                return batch

    def _take(self, ttl: float) -> list[Entry]:
        """Take what is ready, at most a batch; give up what was not reported again."""
        now = asyncio.get_running_loop().time()
        batch: list[Entry] = []
        size = 0
        for queue in self._ready:
            while queue and len(batch) < BATCH:
                entry = queue[0]
                if not self._is_ready(entry):
                    queue.popleft()
                elif now - entry.reported > entry.longest_ttl(ttl) / 2:
                    queue.popleft()
                    self._forget(entry)
                    self._leave([entry])
                    entry.settle(Unavailable("it was not written in time"))
                elif batch and size + 2 * entry.size > _BATCH_BYTES:
                    return batch
                else:
                    queue.popleft()
                    self._forget(entry)
                    batch.append(entry)
                    size += 2 * entry.size
        return batch

    def done(self, batch: Iterable[Entry]) -> None:
        """Let those that wait for the keys and ids of these entries be taken."""
        entries = list(batch)
        self._under_way -= len(entries)
        self._leave(entries)
        self._wake()

    def _offer(self, entry: Entry) -> None:
        """Put an entry among those that are ready, if it is."""
        if self._is_ready(entry):
            self._ready[not entry.urgent].append(entry)

    def _is_ready(self, entry: Entry) -> bool:
        return not entry.taken and all(self._lanes[lane][0] is entry for lane in entry.lanes)

    def _forget(self, entry: Entry) -> None:
        """Take an entry out of those that wait; it stays in its lanes."""
        entry.taken = True
        self._waiting -= 1
        if self._entries.get(entry.name) is entry:
            del self._entries[entry.name]

    def _leave(self, entries: Iterable[Entry]) -> None:
        """Take entries, each the first of its lanes, out of them."""
        for entry in entries:
            for name in entry.lanes:
                lane = self._lanes[name]
                lane.popleft()
                if lane:
                    self._offer(lane[0])
                else:
                    del self._lanes[name]

    def _wake(self) -> None:
        """Let `take` go on, now or when the batch had the time to fill."""
        ready = sum(map(len, self._ready))
        if ready >= BATCH or (ready and not self._under_way):
            self._some.set()
        elif ready and self._fill is None:
            self._fill = asyncio.get_running_loop().call_later(_FILL, self._filled)

    def _filled(self) -> None:
        self._fill = None
        self._some.set()


def _line_up(lane: deque[Entry], entry: Entry) -> None:
    """Put an entry in a lane: last, but before those that are less urgent and not taken."""
    at = len(lane)
    while entry.urgent and at and not lane[at - 1].urgent and not lane[at - 1].taken:
        at -= 1
    lane.insert(at, entry)
