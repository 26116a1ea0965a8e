"""Forgetting a pod: an operator clears its registration, whatever was reported for it.

The pod's record is deleted, and its registration becomes the tombstone of a pod that left, with its
number and without a nonce: so the next report of the pod is accepted under the same number,
whatever its nonce, and for the callback the pod has left. A registration that cannot be read
is deleted.

The ledger has an entry for it, with a number of its own, though nothing ran. All of it is one
transaction, which compares the request, the record and the registration and moves the request: it
is done once, or not at all.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from kontrol.master.leader.ledger import Ledger
from kontrol.master.leader.parts import Tier
from kontrol.master.leader.requests import Answers, Pending
from kontrol.master.records.masters import OperatorAnswer
from kontrol.master.records.pods import Registration
from kontrol.master.term import Term
from kontrol.store.protocol import Compare, Delete, KeyValue, LeaseGone, Op, Put, Range

_ROUNDS = 8  # of reading again, while the pod goes on reporting
_NAMED = 5  # keys in a message
_SHOWN = 64  # characters of a name in a message
_KEY = re.compile(r"[0-9A-Za-z_-]{1,64}(\.[0-9]{1,19})?\Z")  # of a registration, archived or not
_NUMBER = re.compile(r"#[0-9]{1,18}\Z")


@dataclass(frozen=True, slots=True)
class Place:
    """What the store has at a pod's key: its record, its registration, or one of them."""

    key: str
    pod: KeyValue | None
    registration: KeyValue | None


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
            self._ledger.next_run += 1  # before the write, whose outcome may stay unknown
            ops, what = self._clear(places[0])
            answer = OperatorAnswer(f"{what}; it is run {run} of the ledger", run=run)
            unmoved, put = self._answers.part(pending, answer)
            compares = [unmoved, *self._as_read(places[0])]
            entry = self._ledger.entry(
                run, "forget", by=pending.request.by, started=self._wall(), why=what
            )
            try:
                wrote = await self._term.write(
                    compares,
                    [
                        *ops,
                        *entry,
                        put,
                    ],
                )
            except LeaseGone:
                break
            if wrote.succeeded:
                self._answers.answered(pending, answer)
                return
            if not await self._unmoved(pending):
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
        kvs = (await self._store.range(Range(self._keys.registrations, prefix=True))).kvs
        found = ((kv, self._records.registration(kv)) for kv in kvs)
        return await self._read(
            {
                kv.key.removeprefix(self._keys.registrations)
                for kv, one in found
                if one is not None and (one.id == name if number is None else one.seq == number)
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
            Place(key, pods[0] if pods else None, registrations[0] if registrations else None)
            for key, pods, registrations in pairs
            if pods or registrations
        ]

    def _as_read(self, place: Place) -> list[Compare]:
        return [
            Compare(key, "mod", "=", 0 if kv is None else kv.mod_revision)
            for key, kv in (
                (self._keys.pod(place.key), place.pod),
                (self._keys.registration(place.key), place.registration),
            )
        ]

    def _clear(self, place: Place) -> tuple[list[Op], str]:
        """Return what clears a place, and a sentence that says so."""
        pod, old = place.pod, place.registration
        ops: list[Op] = [] if pod is None else [Delete(pod.key)]
        live = None if pod is None else self._records.pod(pod)
        known = None if old is None else self._records.registration(old)
        if live is not None:
            known = Registration.of(live.pod, known)
        if known is None:
            ops += [] if old is None else [Delete(old.key)]
            return ops, f"what cannot be read at key {place.key} is deleted"
        cleared = replace(known, nonce="", n=None, left=True, sender=None)
        ops.append(Put(self._keys.registration(place.key), cleared.encode()))
        nonce = f"{known.nonce}/{known.n}"[:_SHOWN] if known.nonce else "none"
        pod_is = f"pod {known.id[:_SHOWN]} (key {place.key}, #{known.seq}, nonce {nonce})"
        then = "the next report of it with this key is accepted, under the same number"
        if "." in place.key:  # see `Keys.archived_registration`
            then = "another pod took its key, so it gets a new number if it reports again"
        return ops, f"{pod_is} is forgotten: {then}"

    async def _unmoved(self, pending: Pending) -> bool:
        """Return whether the request is still as it was read."""
        found = (await self._store.range(Range(pending.kv.key))).kvs
        return [kv.mod_revision for kv in found] == [pending.kv.mod_revision]


def _which(name: str, places: list[Place]) -> OperatorAnswer:
    if not places:
        what = f"no pod and no registration has the key, id or number {name[:_SHOWN]!r}"
        return OperatorAnswer(f"{what}; `kontrol pods` lists the pods", refused=True)
    keys = ", ".join(place.key for place in places[:_NAMED])
    more = ", ..." if len(places) > _NAMED else ""
    return OperatorAnswer(
        f"{name[:_SHOWN]!r} is the name of several pods: give a key instead, one of {keys}{more}",
        refused=True,
    )
