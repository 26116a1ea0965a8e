"""Accepting connections: how many, which give way, and what the system cannot give."""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from kontrol import listener
from kontrol.listener import BindError, Guest, Listener, accept, plain_address

DEADLINE = 20


@dataclass
class Talking:
    waiting: bool = True
    unread: bool = False


class Held:
    """Connections that stay until they are evicted; `guests` has those that were served."""

    def __init__(self) -> None:
        self.guests: list[Guest] = []
        self.came = asyncio.Semaphore(0)

    async def __call__(self, accepted: socket.socket, guest: Guest) -> None:
        guest.talk = Talking()
        self.guests.append(guest)
        self.came.release()
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def serving(made: Listener) -> AsyncIterator[Callable[[], socket.socket]]:
    port = await made.bind("127.0.0.1", 0)
    task = asyncio.create_task(made.serve())
    clients = contextlib.ExitStack()
    try:
        with clients:
            yield lambda: clients.enter_context(socket.create_connection(("127.0.0.1", port)))
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert made.connections == 0
    assert not made._tasks


async def test_the_oldest_that_waits_gives_way_else_the_oldest_that_does_not_read() -> None:
    held = Held()
    made = Listener(held, connections=3, per_address=3)
    async with asyncio.timeout(DEADLINE), serving(made) as connect:
        for _ in range(3):
            connect()
            await held.came.acquire()
        first, second, third = held.guests
        first.talk, second.talk = Talking(waiting=False), Talking(waiting=False, unread=True)
        for gone in (third, second):
            connect()
            await held.came.acquire()
            assert gone not in made._guests
            held.guests[-1].talk = Talking(waiting=False)
        assert (made.connections, made.evicted, made.accepted) == (3, 2, 5)
        refused = connect()
        refused.settimeout(0)
        assert await asyncio.get_running_loop().sock_recv(refused, 1) == b""
        assert (made.connections, made.evicted, made.accepted) == (3, 3, 6)
        assert first in made._guests


async def test_one_address_has_a_bound_of_its_own() -> None:
    held = Held()
    made = Listener(held, connections=100, per_address=2)
    async with asyncio.timeout(DEADLINE), serving(made) as connect:
        for _ in range(5):
            connect()
            await held.came.acquire()
        assert (made.connections, made.evicted) == (2, 3)


async def test_what_fails_is_counted_and_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    came = asyncio.Semaphore(0)

    async def fail(_accepted: socket.socket, _guest: Guest) -> None:
        came.release()
        raise RuntimeError("broken")

    made = Listener(fail, connections=3, per_address=3)
    async with asyncio.timeout(DEADLINE), serving(made) as connect:
        for _ in range(2):
            connect()
            await came.acquire()
    assert made.failed == 2
    assert "a connection of 127.0.0.1 failed" in caplog.messages


@pytest.mark.parametrize(
    ("number", "room", "level"),
    [
        (errno.EMFILE, 1, logging.WARNING),
        (errno.ENOMEM, 1, logging.WARNING),
        (errno.ECONNABORTED, 0, logging.DEBUG),
        (errno.EPERM, 0, logging.WARNING),
    ],
)
async def test_what_the_system_cannot_give_ends_nothing(
    number: int,
    room: int,
    level: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only without descriptors or memory does another connection give way."""
    caplog.set_level(logging.DEBUG, "kontrol.listener")
    loop, failures, made_room = asyncio.get_running_loop(), [OSError(number, "no")], []
    real = loop.sock_accept

    async def sock_accept(listening: socket.socket) -> object:
        if failures:
            raise failures.pop()
        return await real(listening)

    monkeypatch.setattr(loop, "sock_accept", sock_accept)
    monkeypatch.setattr(listener, "_PAUSE", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0)
        with socket.create_connection(listening.getsockname()):
            async with asyncio.timeout(DEADLINE):
                accepted, peer = await accept(listening, lambda: made_room.append(1))
            accepted.close()
    assert peer == "127.0.0.1"
    assert len(made_room) == room
    assert [record.levelno for record in caplog.records] == [level]


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:1:2:3", "::ffff:1:2:3"),
        ("fe80::1%eth0", "fe80::1"),
        ("::1", "::1"),
    ],
)
def test_addresses_are_written_as_people_do(address: str, plain: str) -> None:
    assert plain_address(address) == plain


async def test_a_bind_error_names_what_listens_and_the_fix() -> None:
    made = Listener(Held(), connections=1, per_address=1)
    other = Listener(Held(), connections=1, per_address=1)
    port = await made.bind("127.0.0.1", 0)
    with pytest.raises(BindError, match=rf"127\.0\.0\.1 port {port} for X: .*; fix") as taken:
        await other.bind("127.0.0.1", port, name="X", fix="; fix")
    assert taken.value.taken
    with pytest.raises(BindError, match=r"192\.0\.2\.1 port 0: .*set KONTROL_BIND") as absent:
        await other.bind("192.0.2.1", 0, fix="; fix")
    assert not absent.value.taken
    with pytest.raises(BindError, match=r"nothing\.invalid port 0: .*set KONTROL_BIND"):
        await other.bind("nothing.invalid", 0)
    made.close()
