"""Lease refreshes: thousands a second over a few shared streams.

etcd answers the refreshes of one stream in order, one at a time: a stream is a queue, and several
run in parallel (one stream per lease would cost megabytes). Each `Lane` owns one stream and a queue
of the refreshes that are not answered yet. On a new stream all of them are sent again, which is
harmless, since a refresh never shortens a lease.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from kontrol.store.etcd.config import LoggedOut
from kontrol.store.etcd.members import Client
from kontrol.store.etcd.messages import KEEP_ALIVE, Wire
from kontrol.store.etcd.stream import Stream
from kontrol.store.protocol import Ambiguous, StoreError, Unavailable

MAX_PENDING = 20_000  # refreshes that wait in one lane
STALL = 1.5  # seconds without an answer, while some are due, until a quick member is left
_PAUSE = 0.1  # seconds before a failed stream is opened again


class Keepalives:
    """All lanes of one client. A lease stays in its lane, so its refreshes are in order."""

    def __init__(self, client: Client) -> None:
        self._lanes = [Lane(client) for _ in range(client.config.keepalive_streams)]

    async def refresh(self, lease: int) -> int:
        """See `Store.refresh`."""
        return await self._lanes[lease % len(self._lanes)].refresh(lease)

    async def close(self) -> None:
        """End all streams; refreshes under way raise `Unavailable`."""
        for lane in self._lanes:
            await lane.close()


@dataclass(frozen=True, slots=True)
class _Refresh:
    lease: int
    sent: float  # loop time
    answer: asyncio.Future[int]


class Lane:
    """One stream, opened for the first refresh, and the refreshes that wait for answers."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._pending: deque[_Refresh] = deque()
        self._wanted = asyncio.Event()
        self._stream: Stream | None = None
        self._task: asyncio.Task[None] | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._closed = False

    async def refresh(self, lease: int) -> int:
        """Queue one refresh and await its answer, for the client's `timeout` at most."""
        if self._closed:
            raise Unavailable("the store's client is closed")
        if len(self._pending) >= MAX_PENDING:
            raise Unavailable(f"{MAX_PENDING} refreshes wait for etcd already")
        loop = asyncio.get_running_loop()
        refresh = _Refresh(lease, loop.time(), loop.create_future())
        self._pending.append(refresh)
        if self._expiry is None:  # one timer for all: they are in the order of their times
            self._expiry = loop.call_later(self._client.config.timeout, self._expire)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="etcd-keepalives")
        self._wanted.set()
        if self._stream is not None:
            self._send(self._stream, lease)
        return await refresh.answer

    def _expire(self) -> None:
        """Time out those that have waited long enough; their answers may yet come."""
        loop = asyncio.get_running_loop()
        self._expiry = None
        for refresh in self._pending:
            end = refresh.sent + self._client.config.timeout
            if end > loop.time():
                self._expiry = loop.call_at(end, self._expire)
                break
            if not refresh.answer.done():
                why = f"no answer to the refresh of lease {refresh.lease} in time"
                refresh.answer.set_exception(Unavailable(why))

    def _send(self, stream: Stream, lease: int) -> None:
        stream.send(KEEP_ALIVE.request(ID=lease))
        if self._watchdog is None:
            self._watch(stream, stream.timeout(STALL))

    def _watch(self, stream: Stream, delay: float) -> None:
        self._watchdog = asyncio.get_running_loop().call_later(delay, self._check, stream)

    def _check(self, stream: Stream) -> None:
        """End a stream that owes an answer and sends nothing; look again while it owes one."""
        self._watchdog = None
        if not self._pending:
            return
        now = asyncio.get_running_loop().time()
        waited = now - max(self._pending[0].sent, stream.received)
        timeout = stream.timeout(STALL)
        if waited >= timeout:
            stream.pace.timed_out(waited)
            reason = f"etcd at {stream.endpoint} did not answer a refresh for {waited:.1f} s"
            stream.give_up(Unavailable(reason))
        else:
            self._watch(stream, timeout - waited)

    async def _run(self) -> None:
        try:
            while True:
                await self._wanted.wait()
                try:
                    async with self._client.stream(KEEP_ALIVE) as stream:
                        await self._serve(stream)
                except (Unavailable, Ambiguous, LoggedOut):
                    pass  # the client moved on to another member, or forgot its token
                except StoreError as error:
                    self._fail(error)
                self._forget_stream()
                await asyncio.sleep(_PAUSE)
        finally:
            self._forget_stream()
            self._fail(Unavailable("the store's client is closed"))

    async def _serve(self, stream: Stream) -> None:
        # Those that timed out are not sent again.
        self._pending = deque(entry for entry in self._pending if not entry.answer.done())
        self._stream = stream
        for entry in self._pending:
            self._send(stream, entry.lease)
        while True:
            self._answer(await stream.receive(), stream)

    def _answer(self, message: Wire, stream: Stream) -> None:
        if not self._pending or self._pending[0].lease != message.ID:
            raise Unavailable(f"etcd answered for lease {message.ID}, which is not the next one")
        refresh = self._pending.popleft()
        stream.pace.answered(stream.received - max(refresh.sent, stream.opened))
        if not refresh.answer.done():
            refresh.answer.set_result(max(message.TTL, 0))

    def _forget_stream(self) -> None:
        self._stream = None
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if all(entry.answer.done() for entry in self._pending):
            self._pending.clear()
            self._wanted.clear()

    def _fail(self, error: StoreError) -> None:
        for entry in self._pending:
            if not entry.answer.done():
                entry.answer.set_exception(error)
        self._pending.clear()

    async def close(self) -> None:
        """End the stream and the task."""
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
