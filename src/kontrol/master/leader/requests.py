"""What operators ask of the leader, by way of the store: any master takes it, the leader answers.

A request is a key under a lease of its own, so it can be put down at whichever master one reaches,
outlives a change of leader, and goes by itself if nobody answers. The leader writes its answer
into the same key, under its fence. A leader that dies between doing and answering leaves a request
that its successor does again: what is asked for is done at least once.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from kontrol.ensemble.canonical import JSON
from kontrol.master.election.term import Term
from kontrol.master.mirror.follower import Follower
from kontrol.master.records.masters import Answer, Request
from kontrol.master.records.records import Records
from kontrol.store.protocol import (
    Ambiguous,
    Compare,
    Event,
    LeaseGone,
    Put,
    Store,
    Unavailable,
)

log = logging.getLogger(__name__)

Kind = Literal["run", "release", "rollback"]

_LEASE = 60  # seconds for which an unanswered request stands
_PATIENCE = 3.0  # seconds for the store to take a request


class Requests:
    """The requests of one tier, on every master; `run` must be running."""

    def __init__(
        self, store: Store, records: Records, *, silence: float, wall: Callable[[], str]
    ) -> None:
        """`silence` as for a `Follower`; `wall` tells the date and time, RFC 3339."""
        self._store = store
        self._records = records
        self._keys = keys = records.keys
        self._wall = wall
        self._follower = Follower(store, keys.requests, silence=silence)
        self._follower.listen(self._take)
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        self._answered: set[str] = set()

    async def run(self) -> None:
        """Follow the requests until cancelled."""
        await self._follower.run()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` when a request came, was answered, or went."""
        self._follower.listen(lambda _: listener())

    def pending(self, *kinds: Kind) -> list[Request]:
        """Return the requests of these kinds that nobody answered, the oldest first."""
        entries = sorted(self._follower.entries.values(), key=lambda kv: kv.create_revision)
        found = (self._records.request(kv) for kv in entries if kv.key not in self._answered)
        return [one for one in found if one and one.answer is None and one.kind in kinds]

    async def ask(
        self, kind: Kind, by: str, *, run: int | None = None, timeout: float
    ) -> dict[str, JSON]:
        """Ask the leader, and wait at most `timeout` seconds for its answer.

        Returns `request` (its id), `done` (whether the leader answered), `message`, `refused`, and
        the `run` that it concerns. Raises `StoreError`.
        """
        try:
            async with asyncio.timeout(min(_PATIENCE, timeout)):
                lease = (await self._store.grant(_LEASE)).id
        except TimeoutError:
            raise Unavailable("it did not answer in time; nothing was asked for") from None
        name = f"{lease:016x}"
        key = self._keys.requests + name
        value = Request(name, kind, by, self._wall(), run).encode()
        waiting = self._waiting[key] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._put_down(key, value, lease)
                answer = await waiting
        except TimeoutError:
            late = "the leader has not answered yet, and may still do it within a minute"
            return {"request": name, "done": False, **Answer(late, run=run).public()}
        finally:
            del self._waiting[key]
        return {"request": name, "done": True, **answer.public()}

    async def answer(self, term: Term, request: Request, answer: Answer) -> None:
        """Answer under the fence of `term`. Raises `Deposed` and `StoreError`."""
        key = self._keys.requests + request.id
        entry = self._follower.entries.get(key)
        self._answered.add(key)  # before the store tells it
        if entry is None:
            return  # nobody waits any more
        log.info("request of %s (%s): %s", request.by, request.kind, answer.message)
        value = replace(request, answer=answer).encode()
        with contextlib.suppress(LeaseGone):
            unmoved = Compare(key, "mod", "=", entry.mod_revision)
            await term.insist([Put(key, value, entry.lease)], [unmoved])

    async def _put_down(self, key: str, value: bytes, lease: int) -> None:
        absent = Compare(key, "create", "=", 0)
        while True:
            try:
                await self._store.txn([absent], [Put(key, value, lease)])
                return
            except Ambiguous:
                continue  # a second put finds the first, or is it

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            key = event.kv.key
            waiting = self._waiting.get(key)
            if event.type == "delete":
                self._answered.discard(key)
                answer: Answer | None = Answer("the request expired unanswered", refused=True)
            else:
                request = self._records.request(event.kv)
                answer = request.answer if request else None
            if waiting is not None and answer is not None and not waiting.done():
                waiting.set_result(answer)
