"""One transaction for a batch: what it compares and writes, for each decision and for several."""

from dataclasses import replace

from tests.master.support import KEYS
from tests.master.test_admission import LIVE, POD, RECORD, REGISTRATION

from kontrol.ensemble.pod import Keepalive, Pod
from kontrol.master.records.pods import Live, Registration
from kontrol.master.registry.admission import (
    Counter,
    Decision,
    Join,
    Leave,
    Nothing,
    Refresh,
    Refuse,
    TxnBuilder,
    View,
    Write,
    keys_written,
)
from kontrol.store.protocol import Compare, Delete, Put

VIEW = View(live=LIVE, live_revision=30, registration=REGISTRATION, registration_revision=29)
LEASE = 5
AS_READ = [
    Compare(KEYS.pod("k1"), "mod", "=", 30),
    Compare(KEYS.registration("k1"), "mod", "=", 29),
]


def planned(
    *decisions: tuple[Keepalive, View, Decision],
) -> tuple[TxnBuilder, list[int | None]]:
    plan = TxnBuilder(KEYS, Counter(12, 40))
    numbers = [plan.add(record, view, decision, LEASE) for record, view, decision in decisions]
    plan.close()
    return plan, numbers


def test_what_changes_nothing_writes_nothing() -> None:
    for decision, number in ((Refresh(LIVE), 7), (Nothing(), None), (Refuse("a", "b"), None)):
        plan, numbers = planned((RECORD, VIEW, decision))
        assert (plan.compares, plan.ops, numbers) == ([], [], [number])


def test_a_changed_record_is_written_if_neither_it_nor_its_registration_has_moved() -> None:
    pod = replace(POD, payload="y")
    plan, numbers = planned((RECORD, VIEW, Write(pod, LIVE)))
    assert numbers == [7]
    assert plan.compares == AS_READ
    assert plan.ops == [
        Put(KEYS.pod("k1"), pod.encode(), LIVE.lease),
        Put(KEYS.registration("k1"), Registration.of(pod).encode()),
    ]


def test_one_that_comes_back_joins_under_its_number_and_a_new_lease() -> None:
    plan, numbers = planned((RECORD, VIEW, Join(RECORD, 7)))
    assert numbers == [7]
    assert plan.compares == AS_READ
    assert plan.ops == [
        Put(KEYS.pod("k1"), POD.encode(), LEASE),
        Put(KEYS.registration("k1"), REGISTRATION.encode()),
    ]


def test_new_ones_get_the_next_numbers_if_the_counter_has_not_moved() -> None:
    two = replace(RECORD, id="p2", key="k2")
    plan, numbers = planned((RECORD, View(), Join(RECORD, None)), (two, View(), Join(two, None)))
    assert numbers == [12, 13]
    keys = [KEYS.pod("k1"), KEYS.registration("k1"), KEYS.pod("k2"), KEYS.registration("k2")]
    assert plan.compares == [
        *(Compare(key, "mod", "=", 0) for key in keys),
        Compare(KEYS.counter, "mod", "=", 40),
    ]
    assert [op.key for op in plan.ops] == [*keys, KEYS.counter]
    assert plan.ops[-1] == Put(KEYS.counter, b"14")


def test_its_record_elsewhere_is_evicted_if_that_has_not_moved() -> None:
    old = Live(Pod.of(replace(RECORD, key="k9"), 3), revision=25, lease=98)
    plan, _ = planned((RECORD, VIEW, Join(RECORD, 7, moved=(old,))))
    assert plan.compares == [*AS_READ, Compare(KEYS.pod("k9"), "mod", "=", 25)]
    assert plan.ops[2:] == [
        Delete(KEYS.pod("k9")),
        Put(KEYS.registration("k9"), Registration.of(old.pod, left=True).encode()),
    ]


def test_a_tombstone_at_the_key_is_kept_elsewhere() -> None:
    tombstone = replace(REGISTRATION, id="p0", seq=2, left=True)
    plan, _ = planned((RECORD, VIEW, Join(RECORD, 7, archive=tombstone)))
    assert plan.ops[2:] == [Put(KEYS.archived_registration("k1", 2), tombstone.encode())]


def test_a_deregistration_deletes_the_record_if_there_is_one_and_leaves_a_tombstone() -> None:
    tombstone = replace(REGISTRATION, left=True)
    for live, ops in ((LIVE, [Delete(KEYS.pod("k1"))]), (None, [])):
        plan, numbers = planned((RECORD, VIEW, Leave(tombstone, live)))
        assert numbers == [7]
        assert plan.compares == AS_READ
        assert plan.ops == [Put(KEYS.registration("k1"), tombstone.encode()), *ops]


def test_the_keys_that_a_decision_writes() -> None:
    old = Live(Pod.of(replace(RECORD, key="k9"), 3), revision=25, lease=98)
    tombstone = replace(REGISTRATION, id="p0", seq=2, left=True)
    decisions = (
        (Write(POD, LIVE), ("k1",)),
        (Join(RECORD, 7, moved=(old,), archive=tombstone), ("k1", "k9")),
        (Leave(tombstone, LIVE), ("k1",)),
        (Refresh(LIVE), ()),
        (Nothing(), ()),
        (Refuse("a", "b"), ()),
    )
    for decision, keys in decisions:
        assert keys_written(RECORD, decision) == keys
        plan, _ = planned((RECORD, VIEW, decision))
        written = {KEYS.pod(key) for key in keys} | {KEYS.registration(key) for key in keys}
        archived = {KEYS.archived_registration("k1", 2)}
        assert {op.key for op in plan.ops} - archived <= written
