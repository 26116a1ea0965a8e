"""The checker catches what it is for: a good history passes, each one made bad does not."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.simulation.history import (
    KEYS,
    STORE,
    Acknowledged,
    Entry,
    Failure,
    Fault,
    Process,
    Settled,
    Started,
)
from tests.simulation.script import TTL, A, B, C, Script, good, pod


def test_a_good_history_passes() -> None:
    script = good()
    script.settle()
    assert script.complaints() == []


def overlap(s: Script) -> None:
    s.join(B)
    s.start()
    s.start()


def unrecorded(s: Script) -> None:
    s.join(B)
    s.start()
    s.end()
    s.acknowledge()
    s.add(replace(next(e for e in s.entries[::-1] if isinstance(e, Started)), run=99))


def forgotten_change(s: Script) -> None:
    s.join(B)
    s.settle()


def pod_missing_at_the_end(s: Script) -> None:
    s.settle()
    end = s.entries.pop()
    assert isinstance(end, Settled)
    s.add(replace(end, alive=(*end.alive, ("p9", "kp9", '""'))))


def unacknowledged_at_the_end(s: Script) -> None:
    s.join(B)
    s.start()
    s.settle()


def needless(s: Script) -> None:
    s.go()


def state_alone(s: Script) -> None:
    s.commit((KEYS.state, b"3"))


def state_of_another(s: Script) -> None:
    s.join(B)
    s.start()
    s.end(b"7")
    s.acknowledge(b"8")


def stale_state_given(s: Script) -> None:
    s.join(B)
    s.state = b"old"
    s.start()


def acknowledged_though_failed(s: Script) -> None:
    s.join(B)
    s.start()
    s.end(ok=False)
    s.acknowledge(None)


def acknowledged_twice(s: Script) -> None:
    s.join(B)
    s.go()
    s.acknowledge()


def number_reused(s: Script) -> None:
    s.join(B)
    s.run -= 1
    s.start()


def term_goes_back(s: Script) -> None:
    s.join(B)
    s.term -= 1
    s.start()


def shared_seq(s: Script) -> None:
    s.join(replace(B, seq=A.seq))


def other_seq(s: Script) -> None:
    s.join(replace(A, seq=7, n=2))


def inherited_seq(s: Script) -> None:
    s.crash(A)
    s.join(replace(B, seq=A.seq))


def older_record(s: Script) -> None:
    s.join(A)


def dropped_though_acknowledged(s: Script) -> None:
    s.add(Acknowledged(s.at, s.at, A.id, A.key, "1", 1, A.seq, TTL))
    s.at += TTL - 3
    s.commit((KEYS.pod(A.key), None))


def dropped_though_in_reach(s: Script) -> None:
    s.at += TTL + 8
    s.commit((KEYS.pod(A.key), None))


def told_lost_after_an_outage(s: Script) -> None:
    s.add(Process(s.at, "m1", up=False))
    s.at += 2 * TTL
    s.commit((KEYS.pod(A.key), None))
    del s.pods[A.key]
    s.add(Process(s.at, "m1", up=True))
    s.start()


def a_master_dies(s: Script) -> None:
    s.add(Failure(s.at, "m1", "died"))


def told_nothing_joined(s: Script) -> None:
    s.join(B)
    s.start(joined=[])


def told_a_change_that_was_none(s: Script) -> None:
    s.join(B)
    s.start(changed=[A.seq])


def told_lost_who_left(s: Script) -> None:
    s.leave(A)
    s.start(left=[], lost=[A.seq])


def told_left_who_was_lost(s: Script) -> None:
    s.crash(A)
    s.start(left=[A.seq], lost=[])


def tombstone_of_the_living(s: Script) -> None:
    s.commit((KEYS.pod(A.key), None), s.registration(A, left=True))


def a_list_that_never_was(s: Script) -> None:
    s.join(B)
    s.pods.update({A.key: replace(A, payload="y"), C.key: C})
    s.start()


def an_older_list(s: Script) -> None:
    s.pods[A.key] = A
    s.pods[B.key] = B
    s.start()


def another_digest(s: Script) -> None:
    s.join(B)
    s.start()
    run = s.entries.pop()
    assert isinstance(run, Started)
    s.add(replace(run, digest="00"))


@pytest.mark.parametrize(
    ("spoil", "invariant", "says"),
    [
        (overlap, "1", "is alive"),
        (unrecorded, "1", "the ledger has"),
        (forgotten_change, "2", "applied is"),
        (pod_missing_at_the_end, "2", "alive are"),
        (unacknowledged_at_the_end, "2", "not acknowledged"),
        (needless, "3", "nothing to do"),
        (state_alone, "4", "without an acknowledgement"),
        (state_of_another, "4", "returned"),
        (stale_state_given, "4", "is given"),
        (acknowledged_though_failed, "4", "it ended"),
        (acknowledged_twice, "4", "is acknowledged"),
        (number_reused, "4", "starts again"),
        (term_goes_back, "4", "which is over"),
        (shared_seq, "5", "goes to"),
        (other_seq, "5", "becomes"),
        (inherited_seq, "5", "goes to"),
        (older_record, "5", "over"),
        (dropped_though_acknowledged, "6", "after a keepalive"),
        (dropped_though_in_reach, "6", "in reach"),
        (told_lost_after_an_outage, "6 gap", "outage of the tier"),
        (a_master_dies, "8", "died"),
        (told_nothing_joined, "9", "told joined"),
        (told_a_change_that_was_none, "9", "told changed"),
        (told_lost_who_left, "9", "lost?"),
        (told_left_who_was_lost, "9", "left?"),
        (tombstone_of_the_living, "9", "it had not"),
        (a_list_that_never_was, "9", "never was"),
        (an_older_list, "9", "older"),
        (another_digest, "9", "true is"),
    ],
)
def test_a_bad_history_is_caught(
    spoil: Callable[[Script], None], invariant: str, says: str
) -> None:
    script = good()
    spoil(script)
    found = script.complaints()
    assert any(text.startswith(f"invariant {invariant}") and says in text for text in found), found


@pytest.mark.parametrize(
    "why",
    [
        Process(0, "p1", up=False),
        Fault(0, "paused", "p1"),
        Fault(0, "cut", "p1", "m1"),
        Fault(0, "lossy", "m1", "p1"),
        Fault(0, "cut", "m1", STORE),
        Fault(0, "stall", "m1", STORE),
        Fault(0, "paused", STORE),
        Process(0, "m1", up=False),
    ],
)
def test_one_that_cannot_report_may_expire(why: Entry) -> None:
    script = good()
    script.add(replace(why, at=script.at))
    dropped_though_in_reach(script)
    assert script.complaints() == []


def test_a_pod_that_changes_its_address_leaves() -> None:
    script = good()
    old, moved = replace(A, n=1, payload="x"), pod("p1", 9, n=2, key="new")
    del script.pods[A.key]
    script.pods[moved.key] = moved
    script.commit(
        (KEYS.pod(A.key), None), script.registration(old, left=True),
        (KEYS.pod(moved.key), moved.encode()), script.registration(moved),
    )  # fmt: skip
    script.start(left=[A.seq], lost=[])
    assert script.complaints() == []
