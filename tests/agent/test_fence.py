"""The fence against a model: the highest term of each tier, and no other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.agent.request import MOST_TIERS, Fence, FencingToken
from kontrol.rpc.errors import Refused

CALLS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20)))


@given(CALLS)
def test_admits_no_term_below_the_highest_of_its_tier(calls: list[tuple[str, int]]) -> None:
    fence, highest = Fence(), {"a": 0, "b": 0, "c": 0}
    for tier, term in calls:
        if term >= highest[tier]:
            fence.admit(FencingToken(tier, term, 1))
            highest[tier] = term
        else:
            with pytest.raises(Refused) as caught:
                fence.admit(FencingToken(tier, term, 1))
            assert caught.value.name == "Fenced"
            assert f"term {term} of tier {tier!r}" in caught.value.message
            assert f"term {highest[tier]} has" in caught.value.message


def test_forgets_no_tier_to_make_room() -> None:
    fence = Fence()
    for number in range(MOST_TIERS):
        fence.admit(FencingToken(f"ns/{number}", 5, 1))
    with pytest.raises(Refused, match="Busy"):
        fence.admit(FencingToken("ns/more", 5, 1))
    with pytest.raises(Refused, match="Fenced"):
        fence.admit(FencingToken("ns/0", 4, 1))
    fence.admit(FencingToken("ns/0", 6, 1))
