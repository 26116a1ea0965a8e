"""The ordered ensemble, its digest, and the difference between two of them."""

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.ensemble.ensemble import (
    Changes,
    Ensemble,
    Member,
    difference,
    digest_of,
    missing,
    names,
)
from kontrol.ensemble.pod import Pod


def pod(seq: int, key: str = "", payload: str = "", pod_id: str = "") -> Pod:
    return Pod(
        seq=seq,
        app="a",
        id=pod_id or f"p{seq}",
        ip="10.0.0.1",
        key=key or f"k{seq}",
        role="r",
        payload=payload,
        nonce="n",
    )


def test_the_digest_is_frozen() -> None:
    """A golden value: a change of the canonical form would run every callback again."""
    pods = [
        Pod(0, "app", "p0", "10.0.0.1", "blXcB", "r", {"é": [1, 2.5, None]}, "n0", 3),
        Pod(12, "app", "p1", "10.0.0.2", "blXcC", "r", "", "n1", 0, {"zone": "z"}),
    ]
    assert digest_of(pods) == "6a:9c:24:11:3b:ba:35:b5:d9:10:03:35:7b:67:e2:68"
    assert digest_of([]) == ":".join(
        hashlib.md5(b"[]").hexdigest()[i : i + 2]  # noqa: S324
        for i in range(0, 32, 2)
    )


def test_the_counter_does_not_change_the_digest() -> None:
    one, two = pod(1), Pod(1, "a", "p1", "10.0.0.1", "k1", "r", "", "n", 9)
    assert digest_of([one]) == digest_of([two])


def test_order_is_by_number_not_by_arrival() -> None:
    ensemble = Ensemble([pod(5), pod(1), pod(3)])
    assert [p.seq for p in ensemble] == [1, 3, 5]


def test_a_pod_is_found_by_key_and_by_id() -> None:
    ensemble = Ensemble([pod(1, key="x", pod_id="same"), pod(2, key="y", pod_id="same")])
    assert ensemble.get("x") == pod(1, key="x", pod_id="same")
    assert [p.key for p in ensemble.with_id("same")] == ["x", "y"]
    ensemble.remove("x")
    assert [p.key for p in ensemble.with_id("same")] == ["y"]
    assert ensemble.with_id("other") == []


SOME_PODS = st.dictionaries(st.integers(0, 30), st.sampled_from(["", "a", "b"]), max_size=12).map(
    lambda found: [pod(seq, payload=payload) for seq, payload in found.items()]
)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 99)), max_size=40))
def test_it_behaves_as_a_sorted_dictionary(steps: list[tuple[bool, int, int]]) -> None:
    ensemble, model = Ensemble(), dict[str, Pod]()
    for put, number, seq in steps:
        key = f"k{number}"
        if put:
            assert ensemble.put(pod(seq, key=key)) == model.get(key)
            model[key] = pod(seq, key=key)
        else:
            assert ensemble.remove(key) == model.pop(key, None)
        assert list(ensemble) == sorted(model.values(), key=lambda p: (p.seq, p.key))
        assert ensemble.digest == digest_of(ensemble)
        assert len(ensemble) == len(model)


@given(SOME_PODS, SOME_PODS, st.sets(st.integers(0, 30)))
def test_a_difference_turns_before_into_after(
    before: list[Pod], after: list[Pod], left: set[int]
) -> None:
    members = [Member.of(p) for p in before]
    changes = difference(members, after, left)
    result = {m.seq: m for m in members}
    for member in (*changes.left, *changes.lost):
        assert (member.seq in left) == (member in changes.left)
        del result[member.seq]
    for member in changes.joined:
        assert member.seq not in result
        result[member.seq] = member
    for member in changes.changed:
        assert result[member.seq] != member
        result[member.seq] = member
    assert result == {p.seq: Member.of(p) for p in after}
    assert bool(changes) == (
        sorted(before, key=lambda p: p.seq) != sorted(after, key=lambda p: p.seq)
    )
    assert [m.seq for m in missing(members, after)] == sorted(
        m.seq for m in (*changes.left, *changes.lost)
    )


def test_a_difference_is_told_in_a_line() -> None:
    before = [Member.of(pod(seq)) for seq in range(8)]
    after = [pod(7, payload="new"), pod(8, pod_id="late")]
    assert str(difference(before, after, {0})) == (
        "1 joined (#8 late), 1 left (#0 p0), 6 lost (#1 p1, #2 p2, #3 p3, #4 p4, #5 p5, ...), "
        "1 changed (#7 p7)"
    )
    assert str(difference(before, [pod(seq) for seq in range(8)], set())) == "nothing changed"


def test_up_to_five_pods_are_named() -> None:
    members = [Member.of(pod(seq)) for seq in range(6)]
    assert names(members[:5]) == "#0 p0, #1 p1, #2 p2, #3 p3, #4 p4"
    assert names(members) == "#0 p0, #1 p1, #2 p2, #3 p3, #4 p4, ..."


@pytest.mark.parametrize("kind", ["joined", "left", "lost", "changed"])
def test_changes_of_any_kind_are_changes(kind: str) -> None:
    changes: dict[str, Any] = {kind: (Member.of(pod(1)),)}
    assert Changes(**changes)
    assert not Changes()
