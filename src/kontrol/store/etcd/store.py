"""`EtcdStore`: the calls of `kontrol.store.protocol.Store`, each one request to etcd.

`config` has the meaning of failures, `members` the choice of a member. This module says only which
calls may be repeated: reads, a grant, whose id is ours, a refresh and a revocation, which have the
same effect twice. A transaction that writes may not.
"""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from kontrol.store.etcd.config import AlreadyExists, EtcdConfig
from kontrol.store.etcd.convert import range_request, range_result, txn_request, txn_result
from kontrol.store.etcd.leases import Keepalives
from kontrol.store.etcd.members import Client
from kontrol.store.etcd.messages import (
    GRANT,
    RANGE,
    REVOKE,
    STATUS,
    TIME_TO_LIVE,
    TXN,
    Wire,
)
from kontrol.store.etcd.watch import EtcdWatch, compacted_revision
from kontrol.store.protocol import (
    Compacted,
    Compare,
    Delete,
    Denied,
    Lease,
    LeaseGone,
    NoSpace,
    Op,
    Range,
    RangeResult,
    TxnResult,
    Unavailable,
    Watch,
)

_ALARM: Final = re.compile(r"\b(NOSPACE|CORRUPT)\b")  # as in "memberID:1 alarm:NOSPACE"


class EtcdStore:
    """A client of one etcd cluster; implements `kontrol.store.protocol.Store`.

    Create and close it in a running event loop. Nothing is sent before the first call. Raises
    `OSError` if a certificate cannot be read.
    """

    def __init__(self, config: EtcdConfig) -> None:
        self._client = Client(config)
        self._keepalives = Keepalives(self._client)
        self._watches: set[EtcdWatch] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def range(self, request: Range) -> RangeResult:
        """See `Store.range`."""
        try:
            return range_result(await self._client.call(RANGE, range_request(request)))
        except Compacted:
            revision = await compacted_revision(self._client, request.key, prefix=request.prefix)
            raise Compacted(revision) from None

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        """See `Store.txn`. Raises `ValueError` if a key is written twice."""
        ops = (*then, *otherwise)
        if any(not isinstance(op, Range) for op in ops):
            request = txn_request(compares, then, otherwise)
            return txn_result(await self._client.call(TXN, request, writes=True))
        # etcd up to 3.5.5 crashes if its client goes away during a transaction that only reads:
        # docs/decisions/0080. The deletion of a key that never is makes it another, and no more.
        never = next((op.key for op in (*ops, *compares)), "") + "\0"
        request = txn_request(compares, then, [*otherwise, Delete(never)])
        try:
            result = txn_result(await self._client.call(TXN, request))
        except NoSpace:
            return await self._snapshot(never, compares, then, otherwise)
        asked = then if result.succeeded else otherwise
        return replace(result, results=result.results[: len(asked)])

    async def _snapshot(
        self, key: str, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op]
    ) -> TxnResult:
        """Do a transaction that only reads, as ranges at one revision: that of a read of `key`.

        Over its quota, etcd before 3.4.20 and 3.5.7 refuses every transaction.
        """
        header = (await self.range(Range(key))).header

        async def read(op: Range) -> RangeResult:
            return await self.range(op if op.revision else replace(op, revision=header.revision))

        try:
            found = await asyncio.gather(*(read(Range(c.key, keys_only=True)) for c in compares))
            succeeded = all(
                compare.holds(next(iter(result.kvs), None))
                for compare, result in zip(compares, found, strict=True)
            )
            asked = [op for op in (then if succeeded else otherwise) if isinstance(op, Range)]
            return TxnResult(header, succeeded, tuple(await asyncio.gather(*map(read, asked))))
        except Compacted as error:
            raise Unavailable(f"it was compacted while it was read: {error}") from error

    async def grant(self, ttl: int) -> Lease:
        """See `Store.grant`."""
        # Our own id: if the answer is lost, asking again does not make a second lease.
        lease = secrets.randbits(62) + 1
        try:
            answer = await self._client.call(GRANT, GRANT.request(ID=lease, TTL=ttl))
        except AlreadyExists:
            answer = await self._time_to_live(lease)
            return Lease(lease, answer.grantedTTL)
        return Lease(answer.ID, answer.TTL)

    def refresh(self, lease: int) -> asyncio.Future[int]:
        """See `Store.refresh`."""
        return self._keepalives.refresh(lease)

    async def remaining(self, lease: int) -> tuple[int, int]:
        """See `Store.remaining`."""
        found = await self._time_to_live(lease)
        return (found.TTL, found.grantedTTL) if found.TTL >= 0 else (0, 0)  # -1: it is gone

    async def _time_to_live(self, lease: int) -> Wire:
        return await self._client.call(TIME_TO_LIVE, TIME_TO_LIVE.request(ID=lease))

    async def revoke(self, lease: int) -> None:
        """See `Store.revoke`."""
        with suppress(LeaseGone):
            await self._client.call(REVOKE, REVOKE.request(ID=lease))

    async def alarms(self) -> tuple[str, ...]:
        """See `Store.alarms`."""
        # Not the method Alarm, which is a proposal to raft each time.
        try:
            answer = await self._client.call(STATUS, STATUS.request())
        except Denied:
            return ()
        return tuple(sorted(set(_ALARM.findall(" ".join(answer.errors)))))

    @asynccontextmanager
    async def watch(
        self, key: str, *, prefix: bool = False, start: int, cluster: int = 0
    ) -> AsyncIterator[Watch]:
        """See `Store.watch`."""
        watch = EtcdWatch(self._client, key, prefix=prefix, start=start, cluster=cluster)
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)
            await watch.close()

    async def close(self) -> None:
        """See `Store.close`."""
        for watch in list(self._watches):
            await watch.close()
        await self._keepalives.close()
        await self._client.close()
