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
        tried.append(addresses.choose())
        addresses.failed(tried[-1])
        addresses.learn(reversed(known))
    assert sorted(tried[: len(known)]) == sorted(known)
    assert tried[: len(known)] == tried[len(known) :]


def test_a_look_up_replaces_what_is_known_unless_it_finds_nothing() -> None:
    addresses = Addresses(keep)
    assert not addresses
    addresses.learn(["a"])
    addresses.failed("a")
    addresses.learn([])
    assert addresses.choose() == "a"
    addresses.learn(["b", "b"])
    assert addresses.choose() == "b"
