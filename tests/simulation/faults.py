"""Faults that the control loop once had, each put back by taking out what keeps it away.

Each comes with a schedule that is made for it. `python -m tests.simulation --fault NAME --count N`
shows how soon random schedules find it.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from tests.simulation.history import KEYS
from tests.simulation.schedule import Schedule, Step
from tests.support.memory.core import Core
from tests.support.simloop import SimLoop

from kontrol.agent import reporter
from kontrol.agent.schedule import SECOND
from kontrol.ensemble.holds import Brake
from kontrol.ensemble.pod import Keepalive
from kontrol.master.election import Election
from kontrol.master.highwater import HighWater
from kontrol.master.leader.counts import Counts
from kontrol.master.leader.execution import CurrentCallback, Decision
from kontrol.master.leader.leader import Leadership
from kontrol.master.leader.observer import Observer
from kontrol.master.leader.parts import Host, LeaderConfig, Tier
from kontrol.master.leader.sweep import Sweep
from kontrol.master.records.fields import Record
from kontrol.master.records.pods import Live, Registration
from kontrol.master.registry.leases import LeaseRefresh, Leases
from kontrol.master.registry.registry import Registry
from kontrol.master.term import Term
from kontrol.store.protocol import Compare, Delete, Event, Op, Put, Range

Patch = pytest.MonkeyPatch

QUIET = Schedule(seed=0, masters=2, pods=3, ttl=10, fover=6, damper=0.5, steps=())
BOOT = (
    Step(0, "start", "m1"), Step(1, "start", "m2"),
    Step(0.5, "start", "p1"), Step(0.6, "start", "p2"), Step(0.7, "start", "p3"),
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """A fault, how to put it back, what shows it, and the invariants that it breaks."""

    name: str
    put_back: Callable[[Patch], None]
    schedule: Schedule
    breaks: tuple[str, ...]  # how its complaints begin


def ignore(patch: Patch, concerns: Callable[[Compare], bool]) -> None:
    """Let the comparisons that `concerns` names hold whatever the store has."""
    real = Core._holds
    patch.setattr(Core, "_holds", lambda self, c: concerns(c) or real(self, c))


def brake_of_the_process(patch: Patch) -> None:
    """The brake belongs to the process, and remembers a former term."""
    brakes: dict[int, Brake] = {}
    real = Leadership.__init__

    def begin(
        self: Leadership,
        term: Term,
        tier: Tier,
        callback: CurrentCallback,
        config: LeaderConfig,
        *,
        counts: Counts,
        host: Host,
    ) -> None:
        real(self, term, tier, callback, config, counts=counts, host=host)
        brake = brakes.setdefault(id(tier), self._observer.brake)
        self._observer.brake = self._actions._brake = brake

    patch.setattr(Leadership, "__init__", begin)


MASS_LOSS_IN_TWO_TERMS = replace(
    QUIET,
    pods=6,
    steps=(
        *BOOT,
        *(Step(1, "start", f"p{i}") for i in (4, 5, 6)),
        *(Step(20, "crash", f"p{i}", "", 22) for i in (1, 2, 3, 4, 5)),
        Step(34, "pause", "m1", "", 30),
        *(Step(56, "crash", f"p{i}", "", 60) for i in (1, 2, 3, 4, 5)),
        Step(64, "crash", "m2", "", 60),
    ),
)


def strict_records(patch: Patch) -> None:
    """A field that is not known makes a record unreadable, and its reader ends."""
    real = Registration.decode.__func__  # type: ignore[attr-defined]

    def decode(cls: type[Registration], raw: bytes) -> Registration:
        registration: Registration = real(cls, raw)
        if registration.more:
            raise TypeError(f"unexpected: {sorted(registration.more)}")
        return registration

    patch.setattr(Registration, "decode", classmethod(decode))


def forgetful_records(patch: Patch) -> None:
    """A field that is not known is lost when the record is rewritten."""
    real = Record.public

    def public(self: Record) -> dict[str, object]:
        return {name: it for name, it in real(self).items() if name not in self.more}

    patch.setattr(Record, "public", public)
    real_registration = Registration.public
    patch.setattr(
        Registration,
        "public",
        lambda self: {k: v for k, v in real_registration(self).items() if k not in self.more},
    )


UPGRADE = replace(
    QUIET,
    steps=(
        *BOOT,
        Step(10, "upgrade", "m1", "later", 1),
        *(Step(12 + 3 * i, "payload", f"p{i % 3 + 1}") for i in range(12)),
        Step(30, "stop", "m1", "", 20), Step(60, "restart", "p1", "", 12),
    ),
)  # fmt: skip


def rollback_again(patch: Patch) -> None:
    """A rollback compares nothing that it moves, and is done again if its answer is lost."""
    ignore(patch, lambda c: c.key == KEYS.state or c.key.startswith(KEYS.requests))


LOST_ROLLBACKS = replace(
    QUIET,
    fover=15,
    steps=(
        *BOOT,
        *(
            step
            for i in range(6)
            for step in (
                Step(20 + 16 * i, "ask", "m2", "rollback"),
                Step(20.05 + 16.015 * i, "mute", "m1", "etcd", 0.05),
            )
        ),
    ),
)


def unnoticed_callback(patch: Patch) -> None:
    """A callback that is replaced in place is not noticed."""

    async def follow(self: CurrentCallback) -> None:
        del self
        await asyncio.Event().wait()

    patch.setattr(CurrentCallback, "follow", follow)


REPLACED = replace(
    QUIET, steps=(*BOOT, *(Step(20 + i, "replace", f"m{i}", "callback 3") for i in (1, 2)))
)


def leases_for_ever(patch: Patch) -> None:
    """A pod keeps the lease that it was granted, whatever the tier's TTL is now."""

    def unfit(self: Leases, refresh: LeaseRefresh) -> bool:
        del self, refresh
        return False

    patch.setattr(Leases, "unfit", unfit)
    patch.setattr(Leases, "acknowledge", lambda self, refresh: self._ttl())


def _rolling(ttl: float) -> tuple[Step, ...]:
    return tuple(Step(20 + 3 * i, "set", f"m{i}", f"ttl={ttl}", 1) for i in (1, 2))


RAISED_TTL = replace(QUIET, ttl=6, steps=(*BOOT, *_rolling(24)))
LOWERED_TTL = replace(QUIET, ttl=25, steps=(*BOOT, *_rolling(6), Step(120, "crash", "p1", "", 60)))


def write_first(patch: Patch) -> None:
    """What changed is written before its lease is refreshed, and not refreshed otherwise."""
    real = Registry._refresh

    def refresh(self: Registry, record: Keepalive, live: Live | None) -> LeaseRefresh | None:
        same = live is not None and (record.nonce, record.n) == (live.pod.nonce, live.pod.n)
        return real(self, record, live) if same else None

    patch.setattr(Registry, "_refresh", refresh)


FULL = replace(
    QUIET,
    steps=(*BOOT, Step(20, "full", lasting=40), *(Step(22 + i, "payload", "p1") for i in (0, 3))),
)


def ages_by_the_wall(patch: Patch) -> None:
    """The age of a registration is what a wall clock shows since another one stamped it."""

    async def sweep(self: Sweep) -> int:
        keys, records = self._records.keys, self._records
        answer = await self._store.txn(
            [],
            [Range(keys.pods, prefix=True, keys_only=True), Range(keys.registrations, prefix=True)],
        )
        live = {kv.key.removeprefix(keys.pods) for kv in answer.range(0).kvs}
        for kv in answer.range(1).kvs:
            registration = records.registration(kv)
            if registration is None or kv.key.removeprefix(keys.registrations) in live:
                continue
            op: Op = Put(kv.key, replace(registration, idle=self._today()).encode())
            if registration.idle is not None:
                op = Delete(kv.key)
                if self._today() - registration.idle < self._age:
                    continue
            await self._term.write([Compare(kv.key, "mod", "=", kv.mod_revision)], [op])
        return 0

    patch.setattr(Sweep, "sweep", sweep)


WRONG_WALLS = replace(
    QUIET,
    age=60,
    sweep=3,
    skewed=True,
    steps=(*BOOT, Step(15, "leave", "p1", "", 70), *(Step(20 + 20 * i, "stop", m, "", 1)
           for i, m in enumerate(("m1", "m2", "m1")))),
)  # fmt: skip


def numbers_of_the_store(patch: Patch) -> None:
    """No master remembers the run that it saw: after a restore numbers start from the snapshot."""

    def take(self: HighWater, events: Sequence[Event]) -> None:
        del self, events

    patch.setattr(HighWater, "_take", take)


RAISED_RESTORE = replace(
    QUIET,
    steps=(
        *BOOT,
        Step(15, "snapshot"),
        *(Step(20 + 3 * i, "payload", f"p{i % 3 + 1}") for i in range(6)),
        Step(45, "restore", "raised", lasting=4),
    ),
)


def start_whatever_was_decided(patch: Patch) -> None:
    """A run starts once it is recorded, however long that took."""

    async def outdated(self: Observer, decision: Decision) -> str:
        del self, decision
        return ""

    patch.setattr(Observer, "outdated", outdated)


HELD_WRITE = replace(
    QUIET,
    fover=15,
    steps=(
        *BOOT, Step(20, "crash", "p3", "", 60), Step(25, "full", lasting=25.5),
        Step(40, "outage", lasting=9),
    ),
)  # fmt: skip


def clocks_that_sleep(patch: Patch) -> None:
    """A master's loop is on a clock that stands still while its machine is suspended."""
    patch.setattr(SimLoop, "pause", SimLoop.suspend)


ALL_SUSPENDED = replace(
    QUIET,
    steps=(
        *BOOT, *(Step(30, "pause", m, "", 25) for m in ("m1", "m2")),
        Step(29.9, "crash", "p3", "", 60),
    ),
)  # fmt: skip


def leaps_by_doubling(patch: Patch) -> None:
    """A process whose clock was set back guesses the nonce that there is, by doubling."""
    patch.setattr(reporter, "skew_past", lambda message, started, skew: max(2 * skew, 2 * SECOND))


CLOCKS_SET_BACK = replace(
    QUIET,
    ttl=25,
    skewed=True,
    steps=(*BOOT, *(Step(30 + 70 * i, "restart", f"p{i + 1}", "", 1) for i in range(3))),
)


def no_catching_up(patch: Patch) -> None:
    """A new leader takes its mirror as it is, which may be behind its predecessor's."""

    async def catch_up(self: Observer) -> None:
        await self._mirror.cache.complete.wait()

    patch.setattr(Observer, "catch_up", catch_up)


LAGGING = replace(
    QUIET,
    fover=3,
    steps=(
        *BOOT,
        *(
            step
            for i in range(6)
            for step in (
                Step(19 + 20 * i, "lag", f"m{2 - i % 2}", "etcd", 9),
                Step(20 + 20 * i, "payload", "p1"),
                Step(22 + 20 * i, "stop", f"m{1 + i % 2}", "", 3),
            )
        ),
    ),
)


def floor_of_the_campaign(patch: Patch) -> None:
    """A standby knows the floor of terms from when it campaigned, not what a leader made of it."""

    def take(self: Election, events: Sequence[Event]) -> None:
        del events
        self._moved.set()

    patch.setattr(Election, "_take", take)


RESTORED_AGAIN_AND_AGAIN = replace(
    QUIET,
    steps=(
        *BOOT,
        Step(15, "snapshot"),
        *(Step(16 + 0.2 * i, "payload", f"p{i % 3 + 1}") for i in range(60)),
        *(
            step
            for i, m in enumerate(("m1", "m2", "m1", "m2"))
            for step in (
                Step(30 + 40 * i, "restore", "other", lasting=0.5),
                Step(45 + 40 * i, "payload", "p1"),
                Step(49.9 + 40 * i, "crash", m, "", 12),
                Step(50 + 40 * i, "restore", "other", lasting=0.5),
            )
        ),
    ),
)

FAULTS = (
    Fault("brake", brake_of_the_process, MASS_LOSS_IN_TWO_TERMS, ("10 the brake",)),
    Fault("strict", strict_records, UPGRADE, ("8", "2", "6")),
    Fault("forgetful", forgetful_records, UPGRADE, ("unknown",)),
    Fault("rollback", rollback_again, LOST_ROLLBACKS, ("11", "4")),
    Fault("callback", unnoticed_callback, REPLACED, ("2",)),
    Fault("raised ttl", leases_for_ever, RAISED_TTL, ("6",)),
    Fault("lowered ttl", leases_for_ever, LOWERED_TTL, ("7",)),
    Fault("full", write_first, FULL, ("6",)),
    Fault("wall", ages_by_the_wall, WRONG_WALLS, ("9 registrations",)),
    Fault("restore", numbers_of_the_store, RAISED_RESTORE, ("4",)),
    Fault("floor", floor_of_the_campaign, RESTORED_AGAIN_AND_AGAIN, ("4", "1")),
    Fault("held", start_whatever_was_decided, HELD_WRITE, ("6 gap",)),
    Fault("suspended", clocks_that_sleep, ALL_SUSPENDED, ("6 gap",)),
    Fault("leap", leaps_by_doubling, CLOCKS_SET_BACK, ("6 who",)),
    Fault("catch up", no_catching_up, LAGGING, ("9 true lists",)),
)
