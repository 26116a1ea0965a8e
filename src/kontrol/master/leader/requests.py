"""Requests of operators to the leader, through the store: any master accepts, the leader answers.

A request is a key under a lease of its own, so any master can write it, it outlives a change of
leader, and it expires if no leader answers. The leader writes its answer into the same key, under
its fence. A rollback and its answer are one transaction, so it is done once; so is forgetting a
pod. A leader that dies between starting a run and answering leaves a request that its successor
carries out again: a run that was asked for happens at least once.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kontrol.ensemble.canonical import JSON
from kontrol.master.records.masters import OperatorAnswer, OperatorRequest
from kontrol.master.records.records import Records
from kontrol.master.term import Term
from kontrol.master.watchcache import WatchCache
from kontrol.store.protocol import (
    Ambiguous,
    Compare,
    Event,
    KeyValue,
    LeaseGone,
    NoSpace,
    Put,
    Store,
    Unavailable,
)

log = logging.getLogger(__name__)

Kind = Literal["run", "release", "rollback", "forget"]

_LEASE = 60  # seconds until an unanswered request expires
_TIMEOUT = 3.0  # seconds for the store to grant a request its lease


@dataclass(frozen=True, slots=True)
class Pending:
    """A request that is not answered yet, and its key as the store has it."""

    request: OperatorRequest
    kv: KeyValue


class Requests:
    """The requests of one tier, on every master; `run` must be running."""

    def __init__(
        self, store: Store, records: Records, *, silence: float, wall: Callable[[], str]
    ) -> None:
        """`silence` as for a `WatchCache`; `wall` returns the date and time, RFC 3339."""
        self._store = store
        self._records = records
        self._keys = keys = records.keys
        self._wall = wall
        self.cache = WatchCache(store, keys.requests, silence=silence)
        self.cache.listen(self._take)
        self._waiting: dict[str, asyncio.Future[OperatorAnswer]] = {}

    async def run(self) -> None:
        """Follow the requests until cancelled."""
        await self.cache.run()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` when a request came, was answered, or expired."""
        self.cache.listen(lambda _: listener())

    def pending(self, *kinds: Kind) -> list[Pending]:
        """Return the requests of these kinds that are not answered yet, the oldest first."""
        entries = sorted(self.cache.entries.values(), key=lambda kv: kv.create_revision)
        found = ((self._records.request(kv), kv) for kv in entries)
        return [
            Pending(request, kv)
            for request, kv in found
            if request is not None and request.answer is None and request.kind in kinds
        ]

    async def ask(
        self, kind: Kind, by: str, *, run: int | None = None, pod: str = "", timeout: float
    ) -> dict[str, JSON]:
        """Ask the leader, about `run` or `pod`, and wait at most `timeout` seconds for its answer.

        Returns `request` (its id), `done` (whether the leader answered), `message`, `refused`, and
        `run`, the number that it is about. Raises `StoreError`.
        """
        try:
            async with asyncio.timeout(min(_TIMEOUT, timeout)):
                lease = (await self._store.grant(_LEASE)).id
        except TimeoutError:
            raise Unavailable("it did not answer in time; nothing was requested") from None
        name = f"{lease:016x}"
        key = self._keys.requests + name
        value = OperatorRequest(name, kind, by, self._wall(), run, pod=pod).encode()
        waiting = self._waiting[key] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._write(key, value, lease)
                answer = await waiting
        except TimeoutError:
            late = "the leader has not answered yet, and may still do it within a minute"
            return {"request": name, "done": False, **OperatorAnswer(late, run=run).public()}
        finally:
            del self._waiting[key]
        return {"request": name, "done": True, **answer.public()}

    async def _write(self, key: str, value: bytes, lease: int) -> None:
        absent = Compare(key, "create", "=", 0)
        while True:
            try:
                await self._store.txn([absent], [Put(key, value, lease)])
                return
            except NoSpace:
                raise
            except Ambiguous:
                continue  # if the first put took effect, the second writes nothing

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            key = event.kv.key
            waiting = self._waiting.get(key)
            if event.type == "delete":
                answer: OperatorAnswer | None = OperatorAnswer(
                    "the request expired unanswered", refused=True
                )
            else:
                request = self._records.request(event.kv)
                answer = None if request is None else request.answer
            if waiting is not None and answer is not None and not waiting.done():
                waiting.set_result(answer)


class Answers:
    """A term's answers to requests."""

    def __init__(self, requests: Requests, term: Term) -> None:
        self._requests = requests
        self._term = term
        self._answered: set[str] = set()  # the watch may not show it yet

    def pending(self, *kinds: Kind) -> list[Pending]:
        """Return the requests of these kinds that this term has not answered, the oldest first."""
        return [p for p in self._requests.pending(*kinds) if p.kv.key not in self._answered]

    def part(self, pending: Pending, answer: OperatorAnswer) -> tuple[Compare, Put]:
        """Return what to compare and what to put to answer a request in another transaction."""
        kv, value = pending.kv, replace(pending.request, answer=answer).encode()
        return Compare(kv.key, "mod", "=", kv.mod_revision), Put(kv.key, value, kv.lease)

    def answered(self, pending: Pending, answer: OperatorAnswer) -> None:
        """Note that a request is answered, or is gone."""
        self._answered.add(pending.kv.key)
        request = pending.request
        log.info("request of %s (%s): %s", request.by, request.kind, answer.message)

    async def answer(self, pending: Pending, answer: OperatorAnswer) -> None:
        """Answer a request, unless it is gone. Raises `Deposed` and `StoreError`."""
        self.answered(pending, answer)
        unmoved, put = self.part(pending, answer)
        with contextlib.suppress(LeaseGone):
            await self._term.insist([put], [unmoved])
