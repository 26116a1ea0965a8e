"""Forgetting a pod: an operator clears a seat, whatever was reported for it.

The pod's record is deleted, and its seat becomes the tombstone of a pod that left, with its number
and without a nonce: so whoever reports the pod next is taken under the same number, whatever the
nonces, and the callback is told that it left. A seat that cannot be read is deleted.

It is an entry of the ledger, with a number of its own, though nothing ran. All of it is one
transaction, which compares the request, the record and the seat and moves the request: it is done
once, or not at all.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from kontrol.ensemble.ensemble import Changes
from kontrol.master.leader.ledger import Ledger
from kontrol.master.leader.parts import Tier
from kontrol.master.leader.requests import Answers, Pending
from kontrol.master.records.masters import OperatorAnswer
from kontrol.master.records.pods import Registration
from kontrol.master.records.runs import Ending, Running, encode_entry
from kontrol.master.term import Term
from kontrol.store.protocol import Compare, Delete, KeyValue, LeaseGone, Op, Put, Range

_ROUNDS = 8  # of reading anew, while the pod goes on reporting
_NAMED = 5  # keys in a message
_SHOWN = 64  # characters of a name in a message
_KEY = re.compile(r"[0-9A-Za-z_-]{1,64}(\.[0-9]{1,19})?\Z")  # of a seat, or of an earlier one's
_NUMBER = re.compile(r"#[0-9]{1,18}\Z")


@dataclass(frozen=True, slots=True)
class Place:
    """What the store has at a pod's key: its record, its seat, or one of them."""

    key: str
    pod: KeyValue | None
    seat: KeyValue | None


class Forgetting:
    """Forgets pods in one term."""

    def __init__(
        self,
        term: Term,
        tier: Tier,
        ledger: Ledger,
        answers: Answers,
        wall: Callable[[], str],
    ) -> None:
        """`wall` returns the date and time, RFC 3339."""
        self._store = tier.store
        self._records = tier.records
        self._keys = tier.records.keys
        self._mirror = tier.mirror
        self._term = term
        self._ledger = ledger
        self._answers = answers
        self._wall = wall

    async def forget(self, pending: Pending) -> None:
        """Do what a request asks, and answer it. Raises `Deposed` and `StoreError`."""
        for _ in range(_ROUNDS):
            places = await self._find(pending.request.pod)
            if len(places) != 1:
                await self._answers.answer(pending, _which(pending.request.pod, places))
                return
            run = self._ledger.next_run
            self._ledger.next_run += 1  # at once: nobody knows what becomes of the write
            ops, what = self._clear(places[0])
            answer = OperatorAnswer(f"{what}; it is run {run} of the ledger", run=run)
            unmoved, put = self._answers.part(pending, answer)
            compares = [unmoved, *self._as_read(places[0])]
            entry = self._entry(run, pending.request.by, what)
            try:
                wrote = await self._term.write(
                    compares,
                    [
                        *ops,
                        Put(self._keys.last_run, b"%d" % run),
                        Put(self._keys.run(run), entry),
                        put,
                    ],
                )
            except LeaseGone:
                break
            if wrote.succeeded:
                self._answers.answered(pending, answer)
                return
            if not await self._stands(pending):
                break
        else:
            why = "the pod reported each time that it was to be forgotten: try again"
            await self._answers.answer(pending, OperatorAnswer(why, refused=True))
            return
        self._answers.answered(
            pending, OperatorAnswer("it expired, or was done before", refused=True)
        )

    async def _find(self, name: str) -> list[Place]:
        """Return the places that a key, an id or `#` and a number name."""
        ensemble = self._mirror.ensemble
        number = int(name[1:]) if _NUMBER.match(name) else None
        if number is not None:
            keys = {pod.key for pod in ensemble if pod.seq == number}
        else:
            keys = {pod.key for pod in ensemble.with_id(name)}
            keys |= {name} if _KEY.match(name) else set()
        places = await self._read(keys)
        if places:
            return places
        seats = (await self._store.range(Range(self._keys.registrations, prefix=True))).kvs
        found = ((kv, self._records.registration(kv)) for kv in seats)
        return await self._read(
            {
                kv.key.removeprefix(self._keys.registrations)
                for kv, seat in found
                if seat is not None and (seat.id == name if number is None else seat.seq == number)
            }
        )

    async def _read(self, keys: Collection[str]) -> list[Place]:
        """Read what is at these keys, or at the first of many."""
        some = sorted(keys)[: _NAMED + 1]
        ops = [
            Range(key(each)) for each in some for key in (self._keys.pod, self._keys.registration)
        ]
        if not ops:
            return []
        answer = await self._store.txn([], ops)
        found = [answer.range(i).kvs for i in range(len(ops))]
        pairs = zip(some, found[::2], found[1::2], strict=True)
        return [
            Place(key, pods[0] if pods else None, seats[0] if seats else None)
            for key, pods, seats in pairs
            if pods or seats
        ]

    def _as_read(self, place: Place) -> list[Compare]:
        return [
            Compare(key, "mod", "=", 0 if kv is None else kv.mod_revision)
            for key, kv in (
                (self._keys.pod(place.key), place.pod),
                (self._keys.registration(place.key), place.seat),
            )
        ]

    def _clear(self, place: Place) -> tuple[list[Op], str]:
        """Return what clears a place, and what that is in words."""
        live = self._records.pod(place.pod) if place.pod is not None else None
        seat = self._records.registration(place.seat) if place.seat is not None else None
        ops: list[Op] = [] if place.pod is None else [Delete(self._keys.pod(place.key))]
        if live is not None:
            seat = Registration.of(live.pod, seat)
        if seat is None:
            if place.seat is not None:
                ops.append(Delete(place.seat.key))
            return ops, f"what cannot be read at key {place.key} is deleted"
        cleared = replace(seat, nonce="", n=None, left=True, sender=None)
        ops.append(Put(self._keys.registration(place.key), cleared.encode()))
        nonce = f"{seat.nonce}/{seat.n}"[:_SHOWN] if seat.nonce else "none"
        what = f"pod {seat.id[:_SHOWN]} (key {place.key}, #{seat.seq}, nonce {nonce}) is forgotten"
        then = "the next report of it with this key is accepted, under the same number"
        if "." in place.key:  # see `Keys.archived_registration`
            then = "another pod took its key, so it gets a new number if it reports again"
        return ops, f"{what}: {then}"

    def _entry(self, run: int, by: str, what: str) -> bytes:
        applied = self._ledger.applied
        entry = Running(
            run=run,
            term=self._term.number,
            digest=applied.digest,
            fingerprint=applied.fingerprint or "",
            started=self._wall(),
            reason="forget",
            by=by,
        )
        return encode_entry(entry, len(applied.members), Changes(), Ending(ok=True, why=what))

    async def _stands(self, pending: Pending) -> bool:
        """Tell whether the request still waits as it was read."""
        found = (await self._store.range(Range(pending.kv.key))).kvs
        return bool(found) and found[0].mod_revision == pending.kv.mod_revision


def _which(name: str, places: list[Place]) -> OperatorAnswer:
    if not places:
        what = f"no pod and no seat has the key, id or number {name[:_SHOWN]!r}"
        return OperatorAnswer(f"{what}; `kontrol pods` lists the pods", refused=True)
    keys = ", ".join(place.key for place in places[:_NAMED])
    more = ", ..." if len(places) > _NAMED else ""
    return OperatorAnswer(
        f"{name[:_SHOWN]!r} names several: give the key: {keys}{more}", refused=True
    )
