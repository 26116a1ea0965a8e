"""Choosing an address, and looking one up without blocking."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.agent.addresses import Addresses, Resolver

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


class SlowDNS:
    """Stands for getaddrinfo: answers when told."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.asked = 0
        self.error: OSError | UnicodeError | None = None

    def __call__(self, host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        self.asked += 1
        assert self.answer.wait(10)
        if self.error is not None:
            raise self.error
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port)),
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::1", port, 0, 0)),
        ]


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDNS]:
    slow = SlowDNS()
    monkeypatch.setattr(socket, "getaddrinfo", slow)
    yield slow
    slow.answer.set()


async def test_an_address_needs_no_look_up(dns: SlowDNS) -> None:
    resolve = Resolver()
    assert await resolve("10.0.0.1", 8000) == ["10.0.0.1"]
    assert await resolve("fd00::1", 8000) == ["fd00::1"]
    assert dns.asked == 0


async def test_a_name_has_the_addresses_of_both_families(dns: SlowDNS) -> None:
    dns.answer.set()
    assert await Resolver()("masters", 8000) == ["10.0.0.1", "fd00::1"]


async def test_a_look_up_that_a_caller_gave_up_serves_the_next(dns: SlowDNS) -> None:
    resolve = Resolver()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await resolve("masters", 8000)
    dns.answer.set()
    assert await resolve("masters", 8000) == ["10.0.0.1", "fd00::1"]
    assert dns.asked == 1
    await resolve("masters", 8000)
    assert dns.asked == 2


async def test_a_hanging_look_up_delays_no_other_name(dns: SlowDNS) -> None:
    resolve = Resolver()
    hanging = [asyncio.create_task(resolve(f"dead-{i}", 8000)) for i in range(20)]
    await asyncio.sleep(0)  # each has started its thread
    assert await resolve("10.0.0.1", 8000) == ["10.0.0.1"]
    dns.answer.set()
    await asyncio.gather(*hanging)


@pytest.mark.parametrize("error", [socket.gaierror(-2, "unknown"), UnicodeError("label too long")])
async def test_a_failed_look_up_is_an_os_error(dns: SlowDNS, error: OSError | UnicodeError) -> None:
    dns.error = error
    dns.answer.set()
    with pytest.raises(OSError, match=r"unknown|no DNS name"):
        await Resolver()("masters", 8000)


async def test_a_look_up_that_outlives_its_loop_is_silent(dns: SlowDNS) -> None:
    def one_loop() -> None:
        async def give_up() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await Resolver()("masters", 8000)

        asyncio.run(give_up())

    await asyncio.to_thread(one_loop)
    dns.answer.set()
    for thread in threading.enumerate():
        if thread.name == "look-up masters":
            await asyncio.to_thread(thread.join, 10)


async def test_a_real_look_up() -> None:
    assert set(await Resolver()("localhost", 8000)) & {"127.0.0.1", "::1"}
