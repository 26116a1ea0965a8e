"""Looking names up without blocking, and without waiting for a resolver that hangs."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from kontrol.resolver import Resolver, look_up, resolve


class SlowDNS:
    """Stands for getaddrinfo: answers when told."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.asked = 0
        self.error: OSError | ValueError | None = None

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


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(-2, "unknown"),
        UnicodeError("label too long"),
        ValueError("embedded null character"),
    ],
)
async def test_a_failed_look_up_is_an_os_error(dns: SlowDNS, error: OSError | ValueError) -> None:
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


def test_without_a_loop_the_wait_is_bounded(dns: SlowDNS) -> None:
    assert look_up("10.0.0.1", 8000, 0.01) == ["10.0.0.1"]
    with pytest.raises(TimeoutError, match=r"'masters' was not found within 0.01 s"):
        look_up("masters", 8000, 0.01)
    dns.answer.set()
    assert look_up("masters", 8000, 10) == ["10.0.0.1", "fd00::1"]
    dns.error = socket.gaierror(-2, "unknown")
    with pytest.raises(OSError, match="unknown"):
        look_up("masters", 8000, 10)


@pytest.mark.parametrize("host", ["a\0b", "a" * 70 + ".b", "", "\udcff", "a b"])
async def test_a_name_that_cannot_be_one_is_an_os_error(host: str) -> None:
    with pytest.raises(OSError, match=r"."):
        await resolve(host, 8000)
    with pytest.raises(OSError, match=r"."):
        look_up(host, 8000, 10)


async def test_without_threads_a_look_up_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    resolver = Resolver()
    for _ in range(2):
        with pytest.raises(OSError, match="can't start new thread"):
            await resolver("masters", 8000)
    with pytest.raises(OSError, match="can't start new thread"):
        look_up("masters", 8000, 1)


def test_a_command_can_look_up_without_asyncio() -> None:
    script = (
        "import sys; from kontrol.resolver import look_up; look_up('localhost', 1, 10);"
        "assert 'asyncio' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


@pytest.mark.parametrize(("name", "loads"), [("localhost", False), ("\u00fc..x", True)])
def test_only_a_name_that_is_not_ascii_loads_the_codec_for_it(name: str, loads: bool) -> None:
    code = (
        "import contextlib, sys; from kontrol.resolver import look_up\n"
        f"with contextlib.suppress(OSError): look_up({name!r}, 80, 30.0)\n"
        "print('encodings.idna' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=60
    )
    assert done.stdout == f"{loads}\n"
