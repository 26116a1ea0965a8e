"""Urgent changes: which they are, told from what was acknowledged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.ensemble import Changes, Member, difference
from kontrol.ensemble.pod import Keepalive, Pod, key_of
from kontrol.ensemble.urgent import KINDS, MARK, Urgent, parse_urgent

STATE = parse_urgent("payload.state")


def pod(seq: int, payload: JSON = "") -> Pod:
    ip = f"10.0.0.{seq}"
    return Pod.of(Keepalive("app", f"p{seq}", ip, key_of(ip), "r", payload, "a" * 24, 1), seq)


def urgent(
    what: Urgent, before: list[Pod], now: list[Pod], *, left: set[int] | None = None
) -> bool:
    applied = [Member.of(each, what.mark(each)) for each in before]
    changes = difference(applied, now, left or set())
    return what.among(changes, applied, {each.seq: each for each in now})


@pytest.mark.parametrize(
    ("kind", "now", "left"),
    [
        ("joined", [pod(1), pod(2), pod(3)], set()),
        ("left", [pod(1)], {2}),
        ("lost", [pod(1)], set()),
        ("changed", [pod(1), pod(2, "x")], set()),
    ],
)
def test_each_kind_is_told_from_the_others(kind: str, now: list[Pod], left: set[int]) -> None:
    before = [pod(1), pod(2)]
    for name in KINDS:
        assert urgent(parse_urgent(name), before, now, left=left) == (name == kind)
    assert urgent(parse_urgent("joined,left,lost,changed"), before, now, left=left)
    assert not urgent(Urgent(), before, now, left=left)
    assert not urgent(parse_urgent(kind), before, before)


@pytest.mark.parametrize(
    ("path", "before", "now", "expected"),
    [
        ("payload.state", {"state": "A"}, {"state": "B"}, True),
        ("payload.state", {"state": "A", "load": 1}, {"state": "A", "load": 2}, False),
        ("payload.state", {"load": 1}, {"load": 2}, False),
        ("payload.state", {"load": 1}, {"state": None, "load": 1}, True),
        ("payload.state", {"state": 1}, {}, True),
        ("payload.state", "text", ["list"], False),
        ("payload.te", "text", "texts", False),
        ("payload.0", "ab", "cb", False),
        ("payload.state", {"state": True}, {"state": 1}, True),
        ("payload.a.b", {"a": {"b": 1, "c": 1}}, {"a": {"b": 1, "c": 2}}, False),
        ("payload.a.b", {"a": {"b": 1}}, {"a": {"b": {"c": 2}}}, True),
        ("payload.1", ["a", "b"], ["x", "b"], False),
        ("payload.1", ["a", "b"], ["a", "x"], True),
        ("payload.2", ["a", "b"], ["a", "x"], False),
        ("payload.01", ["a", "b"], ["a", "x"], False),
        ("payload.-1", ["a", "b"], ["a", "x"], False),
    ],
)
def test_a_value_at_a_path_is_urgent_and_what_is_beside_it_is_not(
    path: str, before: JSON, now: JSON, expected: bool
) -> None:
    assert urgent(parse_urgent(path), [pod(1, before)], [pod(1, now)]) == expected


def test_a_path_does_not_make_pods_that_come_and_go_urgent() -> None:
    one, two = pod(1, {"state": "A"}), pod(2, {"state": "B"})
    assert not urgent(STATE, [one], [one, two])
    assert not urgent(STATE, [one, two], [one])


def test_a_change_against_a_run_without_marks_may_be_urgent_and_so_it_is() -> None:
    """As after an upgrade, or with another setting than the leader before."""
    before = [Member.of(pod(1, {"state": "A"}))]
    now = pod(1, {"state": "A", "load": 1})
    changes = difference(before, [now], set())
    assert STATE.among(changes, before, {1: now})
    assert not STATE.among(Changes(), before, {1: pod(1, {"state": "A"})})


def test_without_paths_no_mark_of_another_setting_counts() -> None:
    before = [Member.of(pod(1, {"state": "A"}), STATE.mark(pod(1, {"state": "A"})))]
    now = pod(1, {"state": "B"})
    changes = difference(before, [now], set())
    assert STATE.among(changes, before, {1: now})
    assert not parse_urgent("lost").among(changes, before, {1: now})


def test_marks_are_of_the_paths_and_there_is_none_without() -> None:
    one = pod(1, {"state": "A", "b": "A"})
    assert parse_urgent("lost").mark(one) == ""
    assert MARK.match(STATE.mark(one))
    assert STATE.mark(one) != parse_urgent("payload.b").mark(one)
    assert STATE.mark(one) != parse_urgent("payload.state,payload.b").mark(one)


def test_a_list_of_what_is_urgent() -> None:
    found = parse_urgent(" lost, left ,payload.state,payload.a.b,lost,")
    assert found == Urgent(frozenset({"lost", "left"}), (("state",), ("a", "b")))
    assert found
    assert not Urgent()
    assert Urgent(paths=(("a",),))
    assert parse_urgent("lost")


@pytest.mark.parametrize(
    "text",
    ["gone", "payload", "payload.", "payload..a", "payload.a.", "Lost", "role", ",", "lost;left"],
)
def test_what_is_none_of_them_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="none of them"):
        parse_urgent(text)


@given(st.text(max_size=40))
def test_any_text_is_a_list_or_refused(text: str) -> None:
    try:
        assert parse_urgent(text)
    except ValueError as error:
        assert "none of them" in str(error)
