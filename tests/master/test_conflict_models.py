"""What is remembered of conflicting senders, against models that remember everything."""

from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kontrol.master.registry import conflicts
from kontrol.master.registry.conflicts import Claim, Conflicts, Flips, Sender

TTL = 3.0
REMEMBERED = 3
PASSED = st.sampled_from([0, 0, 1, 2, 3, 4])  # seconds since the one before
HOLDER = Claim("p", "held", "10.0.0.9", "h", 0, "10.0.0.9")


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    """Few are remembered, so that some are forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conflicts, "_CONFLICTS", REMEMBERED)
        patch.setattr(conflicts, "_FLIPS", REMEMBERED)
        yield


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.booleans(), PASSED), max_size=30))
@example([(name, False, 0) for name in "abcd"])
def test_a_conflict_lasts_while_its_sender_is_refused_within_a_ttl(
    history: list[tuple[str, bool, int]],
) -> None:
    found, now = Conflicts(), 0.0
    refusals: dict[str, list[float]] = {}  # of each sender, without a pause longer than a TTL
    for name, over, passed in history:
        now += passed
        before = refusals.pop(name, [])
        if over:
            found.over(name, "p", "n")
        else:
            found.note(Claim("p", name, "10.0.0.1", "n", 0, ""), HOLDER, "Stale", now, TTL)
            refusals[name] = [*(before if before and now - before[-1] <= TTL else []), now]
        for forgotten in list(refusals)[:-REMEMBERED]:
            del refusals[forgotten]
        expected = [
            (times[0], sender, times[-1], len(times))
            for sender, times in refusals.items()
            if now - times[-1] <= TTL
        ]
        told = [
            (each.since, each.refused.key, each.at, each.times) for each in found.lasting(now, TTL)
        ]
        assert sorted(told) == sorted(expected)
        assert [since for since, *_ in told] == sorted(since for since, *_ in told)


SENDERS = st.sampled_from([Sender("a", "1"), Sender("b", "2"), Sender("c"), Sender("d")])


@given(st.lists(st.tuples(st.sampled_from("pqrst"), SENDERS, PASSED), max_size=40))
def test_senders_take_turns_while_each_comes_back_within_a_ttl(
    history: list[tuple[str, Sender, int]],
) -> None:
    """Each sender has a record of its own; one after another is a turn if it had been there."""
    flips, now = Flips(), 0.0
    writers: dict[str, list[Sender]] = {}  # of each id, without repetitions
    wrote: dict[str, float] = {}
    turns: dict[str, int] = {}
    for id_, sender, passed in history:
        now += passed
        names = writers.pop(id_, [])
        turned = False
        if not names or names[-1] != sender:
            turned = names[-2:-1] == [sender] and now - wrote[id_] <= TTL
            turns[id_] = turns.get(id_, 0) + 1 if turned else 0
            names = [*names, sender]
        writers[id_], wrote[id_] = names, now
        for forgotten in list(writers)[:-REMEMBERED]:
            del writers[forgotten], wrote[forgotten], turns[forgotten]
        claim = Claim(id_, "k", sender.address, "", None, str(sender))
        flip = flips.wrote(claim, sender.address, sender, now, TTL)
        assert (flip.turned, flip.times, flip.at) == (turned, turns[id_], now)
        assert flip.flipping == (turns[id_] >= 4)
        assert [flip.last.ip, *([flip.before.ip] if flip.before else [])] == [
            each.address for each in names[:-3:-1]
        ]
        told = {each.last.id for each in flips.lasting(now, TTL)}
        assert told == {one for one, at in wrote.items() if turns[one] >= 4 and now - at <= TTL}


@pytest.mark.parametrize(
    ("connections", "times"), [("12", 5), ("11", 0), (["", ""], 5), (["1", ""], 5)]
)
def test_one_connection_may_change_its_record_back_and_forth(
    connections: list[str], times: int
) -> None:
    """A connection without a name proves nothing: it may be another process of that address."""
    flips, flip = Flips(), None
    for number in range(7):
        mark = number % 2
        sender = Sender("10.0.0.1", connections[mark])
        flip = flips.wrote(Claim("p", "k", "10.0.0.1", "", None, ""), mark, sender, number, TTL)
    assert flip is not None
    assert flip.times == times


@pytest.mark.parametrize("turns", [10, 40])
def test_an_id_whose_senders_take_turns_is_told(turns: int) -> None:
    flips = Flips()
    for number in range(turns):
        sender = Sender(f"10.0.0.{number % 2}")
        claim = Claim("p", "k", sender.address, "", None, str(sender))
        flip = flips.wrote(claim, number % 2, sender, number, TTL)
        assert flip.flipping == (number - 1 >= 4)
    (flip,) = flips.lasting(turns, TTL)
    assert flip.times == turns - 2
    assert flips.lasting(turns - 1 + TTL, TTL) == [flip]
    assert flips.lasting(turns - 1 + TTL + 1, TTL) == []


@pytest.mark.parametrize(
    ("sender", "text"),
    [(Sender("10.0.0.1"), "10.0.0.1"), (Sender("a", "1", "k"), "a (agent key k)")],
)
def test_a_sender_is_told_with_its_key(sender: Sender, text: str) -> None:
    assert str(sender) == text


@pytest.mark.parametrize(
    ("nonce", "sender", "text"),
    [
        ("n", "", "pod p at a (key k, nonce n/3) from an unknown address"),
        ("", "b", "pod p at a (key k, no nonce) from b"),
    ],
)
def test_a_claim_is_told_with_what_is_known_of_it(nonce: str, sender: str, text: str) -> None:
    assert str(Claim("p", "k", "a", nonce, 3, sender)) == text
