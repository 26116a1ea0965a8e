"""A watch that survives its connections: every event from the start on, once, in order.

One task reads the stream, resumes it after the last *event's* revision whenever it breaks, and
queues the events; another one probes it. Invariant: `_position` is a revision up to which every
event has been queued, and it only rises.

**Probe.** Once a second, and on `confirm`, the revision R of the store is read, linearizably, at
any member. If the position has reached R, the watch was not behind when the read was sent, whatever
the state of its stream: this confirms it. Otherwise progress is requested on the stream until the
position reaches R. A stream without any message meanwhile belongs to a member that is stalled,
partitioned or far behind, and is left for another one.

**Progress.** etcd answers a progress request with its revision. In servers before 3.4.25 and 3.5.8
that answer can overtake events (etcd #15220), so a revision counts only if no event came before a
second answer a little later. Servers since 3.5.22 and 3.6.2 do not answer while the start is in the
future (etcd #20229); then the probe's own read settles it.

**Another store.** A watch from a revision that a restored store has not reached gets no message. So
each connection begins with a read, and its cluster id and revision are compared.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Final

from kontrol.store.etcd.config import LoggedOut, classify
from kontrol.store.etcd.convert import event, header, range_request, watch_create
from kontrol.store.etcd.grpc import Status
from kontrol.store.etcd.members import Client
from kontrol.store.etcd.messages import RANGE, WATCH, Wire
from kontrol.store.etcd.stream import Stream
from kontrol.store.protocol import (
    Ambiguous,
    Batch,
    Compacted,
    Denied,
    Event,
    Range,
    Restored,
    StoreError,
    Unavailable,
)

PROBE = 1.0  # seconds between two probes
PROBE_ATTEMPT = 1.0  # seconds that a probe's read waits for one quick member
STALL = 1.5  # seconds without a message, after a progress request, until a quick member is left
SETTLE = 0.25  # seconds between two progress requests
SETTLED = 0.2  # seconds between their answers; a server that catches up sends every 0.1 s
MAX_QUEUED = 256  # batches that are read ahead of the consumer
_PAUSE = 0.05  # seconds before a failed stream is opened again, doubling up to
_MAX_PAUSE = 1.0

_PROGRESS: Final = WATCH.request(progress_request={})


class EtcdWatch:
    """One watch; implements `kontrol.store.protocol.Watch`. Its creator closes it."""

    def __init__(self, client: Client, key: str, *, prefix: bool, start: int, cluster: int) -> None:
        if start < 1:
            raise ValueError(f"a watch starts at a revision of 1 or more, not at {start}")
        self._client = client
        self._key = key
        self._prefix = prefix
        self._start = start  # of the next stream: the last event's revision + 1
        self._position = start - 1
        self._cluster = cluster
        self._confirmed = -math.inf
        self._progress: tuple[int, float] | None = None  # counts if no event follows
        self._moved = asyncio.Event()  # the position rose
        self._asks = self._answered = 0
        self._asked = asyncio.Event()
        self._created = self._refused = False
        self._batches: deque[Batch] = deque()
        self._came = asyncio.Event()  # a batch came, or the task ended
        self._room = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"etcd-watch {key}")
        self._task.add_done_callback(lambda _: self._came.set())

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        while not self._batches:
            if self._task.cancelled():
                raise StopAsyncIteration
            if self._task.done():
                self._task.result()
            self._came.clear()
            await self._came.wait()
        self._room.set()
        return self._batches.popleft()

    async def confirm(self) -> None:
        """See `Watch.confirm`. Several calls may share one confirmation that is later than all."""
        self._asks += 1
        self._asked.set()

    async def close(self) -> None:
        """End the watch and its iteration."""
        self._task.cancel()
        await asyncio.wait({self._task})
        self._batches.clear()

    async def _run(self) -> None:
        """Follow one stream after another. Raises what the iteration raises."""
        pause = _PAUSE
        while True:
            try:
                await self._look()
                async with (
                    self._client.stream(WATCH) as stream,
                    _beside(self._probe(stream), stream),
                ):
                    await self._follow(stream)
            except LoggedOut as error:
                if self._refused:
                    raise Denied(str(error)) from error
                self._refused = True
            except (Unavailable, Ambiguous):
                pass  # the client has moved on to another member
            if self._created:
                pause = _PAUSE
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE)

    async def _look(self) -> int:
        """Read the store's revision, and check that it is the same store. Raises `Restored`."""
        sent, position = _now(), self._position
        # One key of the watched range: any role that may watch it may also read that.
        request = range_request(Range(self._key, keys_only=True))
        seen = header(await self._client.call(RANGE, request, attempt=PROBE_ATTEMPT))
        self._identify(seen.cluster)
        if seen.revision < position:
            raise Restored(
                f"the store is at revision {seen.revision} and was at {position}: it was restored; "
                "read everything again"
            )
        if seen.revision <= self._position:
            self._confirmed = sent
        return seen.revision

    def _identify(self, cluster: int) -> None:
        if self._cluster and cluster != self._cluster:
            raise Restored(
                f"the store is cluster {cluster:x} and was {self._cluster:x}: read everything again"
            )
        self._cluster = cluster

    async def _follow(self, stream: Stream) -> None:
        """Queue the stream's events. Ends only by raising."""
        self._progress = None
        self._created = False
        stream.send(watch_create(self._key, prefix=self._prefix, start=self._start))
        events: list[Event] = []
        while True:
            message = await stream.receive()
            self._judge(message, stream)
            events += map(event, message.events)
            if message.fragment:
                continue
            if events:
                await self._deliver(tuple(events))
                events = []
            elif not message.created:
                self._advance(message.header.revision)

    def _judge(self, message: Wire, stream: Stream) -> None:
        """Raise if the server refuses or ends the watch. A refusal may have `created` set too."""
        if message.canceled:
            if message.compact_revision:
                raise Compacted(message.compact_revision)
            error = classify(stream.endpoint, Status.UNKNOWN, message.cancel_reason)
            if isinstance(error, Denied) and not self._refused:
                # 3.5 calls an expired token "permission denied": a new log-in tells them apart.
                error = LoggedOut(str(error))
            raise error
        if message.created:
            self._identify(message.header.cluster_id)
            self._created = True
            self._refused = False

    async def _deliver(self, events: tuple[Event, ...]) -> None:
        # Servers may repeat events from before a start that was in their future (etcd #20221).
        events = tuple(e for e in events if e.kv.mod_revision >= self._start)
        self._progress = None
        if not events:
            return
        while len(self._batches) >= MAX_QUEUED:
            self._room.clear()
            await self._room.wait()
        last = events[-1].kv.mod_revision
        self._say(Batch(events, self._confirmed))
        self._start = last + 1
        self._rise(last)

    def _say(self, batch: Batch) -> None:
        self._batches.append(batch)
        self._came.set()

    def _advance(self, revision: int) -> None:
        """Note a progress answer: it proves that the one before it counts."""
        now = _now()
        if self._progress is None:
            self._progress = revision, now
        elif now - self._progress[1] >= SETTLED:
            self._rise(self._progress[0])
            self._progress = revision, now

    def _rise(self, revision: int) -> None:
        self._position = max(self._position, revision)
        self._moved.set()

    async def _probe(self, stream: Stream) -> None:
        """Confirm until cancelled. Raises `Unavailable` if the stream stalls, and `Restored`."""
        while True:
            if self._asks == self._answered:
                with suppress(TimeoutError):
                    async with asyncio.timeout(PROBE):
                        await self._asked.wait()
            self._asked.clear()
            asks, sent = self._asks, _now()
            try:
                revision = await self._look()
            except Unavailable:
                await asyncio.sleep(_PAUSE)  # no quorum: no member can tell whether we are behind
                continue
            await self._reach(revision, stream)
            self._confirmed = sent
            if asks > self._answered:
                self._answered = asks
                self._answer(Batch((), sent))

    async def _reach(self, revision: int, stream: Stream) -> None:
        """Request progress until the position is at `revision`. Raises `Unavailable`."""
        since = _now()
        while self._position < revision:
            stream.send(_PROGRESS)
            with suppress(TimeoutError):
                async with asyncio.timeout(SETTLE):
                    while self._position < revision:
                        self._moved.clear()
                        await self._moved.wait()
            waited = _now() - max(since, stream.received)
            timeout = stream.timeout(STALL)
            if waited >= timeout and len(self._batches) < MAX_QUEUED:
                stream.pace.timed_out(waited)
                raise Unavailable(
                    f"etcd at {stream.endpoint}: no message on the watch for {waited:.1f} s"
                )

    def _answer(self, batch: Batch) -> None:
        if self._batches and not self._batches[-1].events:
            self._batches.pop()  # the last one was not taken yet
        self._say(batch)


async def compacted_revision(client: Client, key: str, *, prefix: bool) -> int:
    """Return the oldest revision left, 0 if etcd does not say. Only a watch can find it."""
    try:
        timeout = client.member.pace.timeout(client.config.attempt_timeout)
        async with asyncio.timeout(timeout), client.stream(WATCH) as stream:
            stream.send(watch_create(key, prefix=prefix, start=1))
            while not (revision := (await stream.receive()).compact_revision):
                pass
    except (TimeoutError, StoreError):
        return 0
    return int(revision)


@asynccontextmanager
async def _beside(work: Coroutine[None, None, None], stream: Stream) -> AsyncIterator[None]:
    """Run `work` beside the body. If it raises, the stream ends for that reason."""

    def done(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            stream.give_up(error)

    task = asyncio.create_task(work, name="etcd-probe")
    task.add_done_callback(done)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def _now() -> float:
    return asyncio.get_running_loop().time()
