"""Who gives way when there are too many connections: the idlest, and never one with a call."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.rpc.limits import Limits
from kontrol.rpc.roster import Roster

LIMITS = Limits(connections=6, per_address=3, handshakes=2)


@dataclass(eq=False)
class One:
    name: str
    address: str = "10.0.0.1"
    heard: float = 0.0
    busy: bool = False


def admitted(roster: Roster[One], *members: One, met: bool = True) -> None:
    for member in members:
        assert roster.admit(member) == []
        if met:
            roster.met(member)


def crowd(count: int) -> list[One]:
    return [One(f"p{i}", f"10.0.0.{i}") for i in range(count)]


def names(members: list[One] | None) -> list[str]:
    assert members is not None
    return [member.name for member in members]


def test_the_idlest_of_all_gives_way() -> None:
    roster: Roster[One] = Roster(LIMITS)
    members = crowd(6)
    admitted(roster, *members)
    for member, heard in zip(members, (5.0, 3.0, 1.0, 9.0, 2.0, 4.0), strict=True):
        member.heard = heard
    members[2].busy = True
    gone = []
    for i in range(4):
        gone += names(roster.admit(One(f"new{i}", f"10.1.0.{i}", 10.0)))
        roster.met(next(one for one in roster if one.name == f"new{i}"))
    assert "p2" not in gone  # it has a call in progress
    assert len(set(gone)) == 4
    assert all(name.startswith("p") for name in gone)
    assert len(roster) == 6


def test_one_that_has_spoken_since_outlasts_one_that_has_not() -> None:
    roster: Roster[One] = Roster(LIMITS)
    members = crowd(6)
    admitted(roster, *members)
    members[0].heard = 1.0
    assert names(roster.admit(One("new", "10.1.0.0", 2.0))) == ["p1"]


def test_one_that_speaks_outlasts_a_crowd_that_has_only_shaken_hands() -> None:
    roster: Roster[One] = Roster(Limits(per_address=50))
    honest = One("honest")
    admitted(roster, honest)
    crowd = [One(str(i), heard=float(i)) for i in range(200)]
    gone: list[str] = []
    for now, member in enumerate(crowd):
        gone += names(roster.admit(member))
        member.heard += 0.5  # its handshake
        roster.met(member)
        if not now % 10:
            honest.heard = now + 0.6
    assert gone == [member.name for member in crowd[: len(gone)]]
    assert len(roster) == 50


def test_where_all_speak_the_one_that_spoke_first_gives_way() -> None:
    roster: Roster[One] = Roster(LIMITS)
    same = [One(name) for name in "abc"]
    admitted(roster, *same)
    for member, heard in zip(same, (9.0, 7.0, 8.0), strict=True):
        member.heard = heard
    assert names(roster.admit(One("d", heard=10.0))) == ["b"]


def test_an_address_has_its_own_bound() -> None:
    roster: Roster[One] = Roster(LIMITS)
    same = [One(name) for name in "abc"]
    admitted(roster, One("other", "10.9.9.9"), *same)
    same[0].heard = 1.0
    assert names(roster.admit(One("d"))) == ["b"]
    for member in roster:
        member.busy = True
    assert roster.admit(One("e")) is None
    assert len(roster) == 4


def test_handshakes_have_a_bound_and_the_oldest_gives_way() -> None:
    roster: Roster[One] = Roster(LIMITS)
    members = crowd(3)
    admitted(roster, *members[:2], met=False)
    assert names(roster.admit(members[2])) == ["p0"]
    roster.met(members[1])
    admitted(roster, One("later", "10.2.0.1"), met=False)


def test_those_without_a_handshake_give_way_first() -> None:
    roster: Roster[One] = Roster(LIMITS)
    admitted(roster, *crowd(5))
    admitted(roster, One("half", "10.2.0.1", heard=99.0), met=False)
    assert names(roster.admit(One("new", "10.3.0.1", 100.0))) == ["half"]
    assert names(roster.make_room()) == ["new"]
    assert names(roster.make_room()) == ["p0"]


def test_where_all_have_calls_the_newcomer_is_refused() -> None:
    roster: Roster[One] = Roster(LIMITS)
    admitted(roster, *crowd(6))
    for member in roster:
        member.busy = True
    assert roster.admit(One("new", "10.1.0.0")) is None
    assert roster.make_room() == []
    assert len(roster) == 6


@given(st.lists(st.tuples(st.sampled_from("amsrb"), st.integers(0, 5)), max_size=200))
def test_the_bounds_hold_whatever_happens(steps: list[tuple[str, int]]) -> None:
    roster: Roster[One] = Roster(LIMITS)
    there: list[One] = []
    for now, (step, which) in enumerate(steps):
        one = there[which % len(there)] if there else None
        if step == "a":
            new = One(str(now), f"10.0.0.{which % 3}", now)
            gone = roster.admit(new)
            if gone is not None:
                assert not any(member.busy for member in gone)
                there = [member for member in there if member not in gone] + [new]
        elif one is not None and step == "m":
            roster.met(one)
        elif one is not None and step == "s":
            one.heard = now
        elif one is not None and step == "b":
            one.busy = not one.busy
        elif one is not None:
            roster.remove(one)
            there.remove(one)
        assert set(roster) == set(there)
        assert len(roster) == len(there) <= LIMITS.connections
        for address in {member.address for member in there}:
            assert sum(m.address == address for m in there) <= LIMITS.per_address


def test_busy_members_do_not_make_a_search_endless() -> None:
    roster: Roster[One] = Roster(Limits(connections=2000, per_address=2000))
    members = [One(str(i), busy=True) for i in range(2000)]
    admitted(roster, *members)
    members[1234].busy = False
    assert names(roster.admit(One("new"))) == ["1234"]


@pytest.mark.parametrize("met", [False, True])
def test_removing_twice_is_nothing(met: bool) -> None:
    roster: Roster[One] = Roster(LIMITS)
    one = One("a")
    admitted(roster, one, met=met)
    roster.remove(one)
    roster.remove(one)
    roster.met(one)
    assert len(roster) == 0
    assert not roster._of
