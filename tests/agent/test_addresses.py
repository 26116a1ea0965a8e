"""Choosing an address."""

from hypothesis import given
from hypothesis import strategies as st

from kontrol.agent.addresses import Addresses

names = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6, unique=True)


def keep(items: list[str]) -> None:
    """Shuffle nothing."""


@given(names)
def test_every_address_is_tried_before_one_is_tried_again(known: list[str]) -> None:
    addresses = Addresses(keep)
    addresses.learn(known)
    tried = []
    for _ in range(2 * len(known)):
        address = addresses.choose()
        assert address is not None
        tried.append(address)
        addresses.failed(address)
        addresses.learn(reversed(known))
    assert sorted(tried[: len(known)]) == sorted(known)
    assert tried[: len(known)] == tried[len(known) :]


def test_a_look_up_replaces_what_is_known_unless_it_finds_nothing() -> None:
    addresses = Addresses(keep)
    assert addresses.choose() is None
    addresses.learn(["a"])
    addresses.failed("a")
    addresses.learn([])
    assert addresses.choose() == "a"
    addresses.learn(["b", "b"])
    assert addresses.choose() == "b"


@given(names, st.sets(st.sampled_from("abcdef")))
def test_some_addresses_may_not_be_used_now(known: list[str], without: set[str]) -> None:
    addresses = Addresses(keep)
    addresses.learn(known)
    left = [address for address in known if address not in without]
    assert addresses.choose(without) == (left[0] if left else None)
