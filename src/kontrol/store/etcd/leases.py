"""Lease refreshes: thousands a second over a few shared streams.

etcd answers the refreshes of one stream in order, one at a time: a stream is a queue, and several
run in parallel (one stream per lease would cost megabytes). Each `Lane` owns one stream and a queue
of the refreshes that are not answered yet. On a new stream all of them are sent again, which is
harmless, since a refresh never shortens a lease.

A refresh costs a few microseconds, of which there may be tens of thousands a second: those of one
turn of the event loop leave in one frame, and no task waits in between. An answer is compared with
the bytes that it must have, and decoded only if it has others.

Invariant: the n-th answer of a stream belongs to the n-th refresh that was sent on it. So one that
was given up keeps its place until it is answered.
"""

import asyncio
from collections import deque
from typing import Final, NamedTuple

from kontrol.store.etcd.config import LoggedOut
from kontrol.store.etcd.grpc import framed
from kontrol.store.etcd.hpack import varint
from kontrol.store.etcd.members import Client
from kontrol.store.etcd.messages import KEEP_ALIVE
from kontrol.store.etcd.stream import Stream
from kontrol.store.protocol import Ambiguous, StoreError, Unavailable

MAX_PENDING = 20_000  # refreshes that wait in one lane
STALL = 1.5  # seconds without an answer, while some are due, until a quick member is left
_PAUSE = 0.1  # seconds before a failed stream is opened again

# The fields of LeaseKeepAliveRequest and LeaseKeepAliveResponse: number << 3 | type.
_HEADER, _ID, _TTL = 0x0A, 0x10, 0x18
_FIELD: Final = b"\x08"  # of the request, the lease


class Keepalives:
    """All lanes of one client. A lease stays in its lane, so its refreshes are in order."""

    def __init__(self, client: Client) -> None:
        self._lanes = [Lane(client) for _ in range(client.config.keepalive_streams)]

    def refresh(self, lease: int) -> asyncio.Future[int]:
        """Begin what `Store.refresh` does. Raises `Unavailable`, as its future may."""
        return self._lanes[lease % len(self._lanes)].refresh(lease)

    async def close(self) -> None:
        """End all streams; refreshes under way raise `Unavailable`."""
        for lane in self._lanes:
            await lane.close()


class _Refresh(NamedTuple):
    lease: int
    varint: bytes  # the lease's
    sent: float  # loop time
    answer: asyncio.Future[int]


class Lane:
    """One stream, opened for the first refresh, and the refreshes that wait for answers."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._pending: deque[_Refresh] = deque()
        self._wanted = asyncio.Event()
        self._stream: Stream | None = None
        self._task: asyncio.Task[None] | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._closed = False

    def refresh(self, lease: int) -> asyncio.Future[int]:
        """Queue one refresh; its answer takes the client's `timeout` at most."""
        if self._closed:
            raise Unavailable("the store's client is closed")
        if len(self._pending) >= MAX_PENDING:
            raise Unavailable(f"{MAX_PENDING} refreshes wait for etcd already")
        answer = self._loop.create_future()
        refresh = _Refresh(lease, varint(lease), self._loop.time(), answer)
        self._pending.append(refresh)
        if self._stream is not None:
            self._send(self._stream, refresh)
        elif self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="etcd-keepalives")
        self._wanted.set()
        if self._expiry is None:  # one timer for all: they are in the order of their times
            self._expiry = self._loop.call_later(self._client.config.timeout, self._expire)
        return answer

    def _expire(self) -> None:
        """Time out those that have waited long enough; their answers may yet come."""
        self._expiry = None
        for refresh in self._pending:
            end = refresh.sent + self._client.config.timeout
            if end > self._loop.time():
                self._expiry = self._loop.call_at(end, self._expire)
                break
            if not refresh.answer.done():
                why = f"no answer to the refresh of lease {refresh.lease} in time"
                refresh.answer.set_exception(Unavailable(why))

    def _send(self, stream: Stream, refresh: _Refresh) -> None:
        stream.send_framed(framed(_FIELD + refresh.varint))
        if self._watchdog is None:
            self._watch(stream, stream.timeout(STALL))

    def _watch(self, stream: Stream, delay: float) -> None:
        self._watchdog = self._loop.call_later(delay, self._check, stream)

    def _check(self, stream: Stream) -> None:
        """End a stream that owes an answer and sends nothing; look again while it owes one."""
        self._watchdog = None
        if not self._pending:
            return
        waited = self._loop.time() - max(self._pending[0].sent, stream.received)
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
                    async with self._client.stream(KEEP_ALIVE, self._answer) as stream:
                        self._serve(stream)
                        await stream.done()
                except (Unavailable, Ambiguous, LoggedOut):
                    pass  # the client moved on to another member, or forgot its token
                except StoreError as error:
                    self._fail(error)
                self._forget_stream()
                await asyncio.sleep(_PAUSE)
        finally:
            self._forget_stream()
            self._fail(Unavailable("the store's client is closed"))

    def _serve(self, stream: Stream) -> None:
        # Those that timed out are not sent again.
        self._pending = deque(entry for entry in self._pending if not entry.answer.done())
        self._stream = stream
        for entry in self._pending:
            self._send(stream, entry)

    def _answer(self, messages: list[bytes]) -> None:
        """Take answers that came together; ends a stream that answers what it was not asked."""
        stream, slowest = self._stream, 0.0
        if stream is None:
            return
        for message in messages:
            refresh = self._pending.popleft() if self._pending else None
            ttl = None if refresh is None else _ttl(message, refresh, stream.endpoint)
            if refresh is None or ttl is None:
                if refresh is not None:
                    self._pending.appendleft(refresh)
                reason = f"etcd at {stream.endpoint} answered for a lease that is not the next one"
                stream.give_up(Unavailable(reason))
                return
            slowest = max(slowest, stream.received - max(refresh.sent, stream.opened))
            if not refresh.answer.done():
                refresh.answer.set_result(ttl)
        stream.pace.answered(slowest)

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


def _ttl(message: bytes, refresh: _Refresh, endpoint: str) -> int | None:
    """Return the seconds in a LeaseKeepAliveResponse, None if it is not for this refresh."""
    # As etcd writes it: the header, of less than 128 bytes, the lease, and the TTL.
    try:
        at = 2 + message[1]
        lease = message[at + 1 : at + 1 + len(refresh.varint)]
        if message[0] == _HEADER and at < 0x82 and message[at] == _ID and lease == refresh.varint:
            rest = message[at + 1 + len(lease) :]
            if len(rest) == 2 and rest[0] == _TTL and rest[1] < 0x80:
                return rest[1]
    except IndexError:
        pass
    try:
        answer = KEEP_ALIVE.decode(message, endpoint)
    except Ambiguous:
        return None
    return max(answer.TTL, 0) if refresh.lease == answer.ID else None
