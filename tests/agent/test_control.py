"""The control socket, on real sockets."""

import asyncio
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kontrol import listener
from kontrol.agent import control
from kontrol.agent.control import ControlError, Who, ask_who, default_path, leave, serve

WHO = Who("redis-0", "2Ky00", ("a:8000", "b:8000"))


class Leaver:
    """What the agent's `leave` is: counts, waits until told, and answers."""

    def __init__(self, told: Mapping[str, str | None]) -> None:
        self.told = told
        self.calls = 0
        self.let = asyncio.Event()
        self._called = asyncio.Event()
        self.let.set()

    async def called(self) -> None:
        async with asyncio.timeout(10):
            await self._called.wait()

    async def leave(self) -> Mapping[str, str | None]:
        self.calls += 1
        self._called.set()
        told = self.told
        await self.let.wait()
        return told


@asynccontextmanager
async def serving(path: Path, leaver: Leaver) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(serve(path, WHO, leaver.leave))
        await asyncio.sleep(0)
        yield
        task.cancel()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def there(path: Path) -> bool:
    return os.path.lexists(path)


async def ask(path: Path) -> bool:
    return await asyncio.to_thread(leave, path, WHO)


async def test_leave_returns_when_every_tier_knows(path: Path) -> None:
    leaver = Leaver({"a:8000": None, "b:8000": None})
    leaver.let.clear()
    async with serving(path, leaver):
        asking = asyncio.create_task(ask(path))
        await leaver.called()
        assert not asking.done()
        leaver.let.set()
        assert await asking
        assert leaver.calls == 1
        assert not await ask(path)  # it had left already


async def test_the_agent_tells_whose_it_is(path: Path) -> None:
    async with serving(path, Leaver({})):
        assert await asyncio.to_thread(ask_who, path) == WHO


@pytest.mark.parametrize("other", [Who("redis-1", "2Ky00"), Who("redis-0", "2Ky01")])
async def test_a_pod_that_is_not_meant_stays(path: Path, other: Who) -> None:
    """As where another agent has taken the socket since it was asked who it is."""
    leaver = Leaver({})
    async with serving(path, leaver):
        with pytest.raises(
            ControlError, match=r"this is the agent of pod redis-0 \(key 2Ky00\), which"
        ):
            await asyncio.to_thread(leave, path, other)
    assert leaver.calls == 0


async def test_leave_says_which_tier_does_not_know_and_why(path: Path) -> None:
    leaver = Leaver({"a:8000": None, "b:8000": "no answer in time"})
    async with serving(path, leaver):
        with pytest.raises(
            ControlError, match="tier b:8000 did not acknowledge: no answer in time"
        ):
            await ask(path)
        leaver.told = {"a:8000": None, "b:8000": None}
        assert await ask(path)


async def test_without_an_agent_leave_says_so(path: Path) -> None:
    with pytest.raises(ControlError, match=r"no agent answers at .*KONTROL_CONTROL"):
        await ask(path)


async def test_an_agent_that_dies_is_told_from_one_that_answers(path: Path) -> None:
    leaver = Leaver({})
    leaver.let.clear()
    async with serving(path, leaver):
        asking = asyncio.create_task(ask(path))
        await leaver.called()
    with pytest.raises(ControlError, match="ended before it answered"):
        await asking


async def test_only_the_owner_may_ask_and_the_socket_goes_with_the_agent(path: Path) -> None:
    mask = os.umask(0)
    try:
        async with serving(path, Leaver({})):
            assert stat.S_IMODE(path.lstat().st_mode) == 0o600  # noqa: ASYNC240
            assert os.umask(0) == 0
    finally:
        os.umask(mask)
    assert not there(path)


async def test_a_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(os.fspath(path))
    async with serving(path, Leaver({})):
        await ask(path)


async def test_a_live_socket_is_left_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = Leaver({}), Leaver({})
    async with serving(path, first):
        async with asyncio.timeout(10):
            await serve(path, WHO, second.leave)
        assert "another agent listens there" in caplog.text
        assert "KONTROL_CONTROL" in caplog.text
        await ask(path)
    assert (first.calls, second.calls) == (1, 0)


@pytest.mark.parametrize("kind", ["file", "no folder", "long"])
async def test_a_path_that_cannot_be_is_a_warning(
    path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    match kind:
        case "file":
            path.write_text("mine", encoding="utf-8")  # noqa: ASYNC240
        case "no folder":
            path = path / "not" / "there"
        case _:
            path = path.with_name("x" * 200)
    async with asyncio.timeout(10):
        await serve(path, WHO, Leaver({}).leave)
    assert "will not reach this agent" in caplog.text
    if kind == "file":
        assert path.read_text(encoding="utf-8") == "mine"


async def test_another_socket_in_its_place_is_not_unlinked(path: Path) -> None:
    async with serving(path, Leaver({})):
        os.unlink(path)  # noqa: PTH108
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(os.fspath(path))
    assert there(path)


@pytest.mark.parametrize("request_", [b"", b"LE", b"GOTO x\n", b"WHO", b"\0" * 10_000])
async def test_nonsense_is_not_answered(path: Path, request_: bytes) -> None:
    leaver = Leaver({})

    def exchange() -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(os.fspath(path))
            client.sendall(request_)
            client.shutdown(socket.SHUT_WR)
            try:
                return client.recv(100)
            except ConnectionResetError:
                return b""

    async with serving(path, leaver):
        assert await asyncio.to_thread(exchange) == b""
    assert leaver.calls == 0


async def test_silent_clients_do_not_delay_leaving_for_long(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_CLIENT_TIMEOUT", 0.05)
    async with serving(path, Leaver({})):
        clients = [socket.socket(socket.AF_UNIX) for _ in range(8)]  # as many as it attends to
        try:
            for client in clients:
                client.connect(os.fspath(path))
            await ask(path)
        finally:
            for client in clients:
                client.close()


def test_the_default_path_is_the_users_own(tmp_path: Path) -> None:
    user = os.getuid()
    runtime = {"XDG_RUNTIME_DIR": os.fspath(tmp_path)}
    assert default_path(8000, runtime) == tmp_path / f"kontrol-{user}" / "8000.sock"
    assert default_path(9000, {}) == Path(f"/tmp/kontrol-{user}/9000.sock")


async def test_the_folder_is_made_for_the_user_alone(tmp_path: Path) -> None:
    path = default_path(8000, {"XDG_RUNTIME_DIR": os.fspath(tmp_path)})
    async with serving(path, Leaver({})):
        await ask(path)
    assert stat.S_IMODE(path.parent.lstat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["open", "link"])
async def test_a_folder_that_others_made_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    path = default_path(8000, {"XDG_RUNTIME_DIR": os.fspath(tmp_path)})
    if kind == "open":
        path.parent.mkdir()
        path.parent.chmod(0o777)
    else:
        (tmp_path / "theirs").mkdir(mode=0o700)
        path.parent.symlink_to(tmp_path / "theirs")
    async with asyncio.timeout(10):
        await serve(path, WHO, Leaver({}).leave)
    assert "not a directory of this user alone" in caplog.text


async def test_a_client_that_goes_away_does_no_harm(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    leaver = Leaver({"x" * 500_000: None})
    leaver.let.clear()
    async with serving(path, leaver):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(path))
            client.sendall(WHO.request)
            await leaver.called()
        leaver.let.set()
        leaver.told = {}
        await ask(path)
    assert "a client went away" in caplog.text


@pytest.mark.parametrize("says", [b"OK\n", b"[]\n", b"{}\n", b'{"tiers": 7}\n', b"\xff\n"])
async def test_what_is_no_agent_is_said_to_be_none(path: Path, says: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(says)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(answer, path):
        with pytest.raises(ControlError, match="is not an agent"):
            await ask(path)


async def test_without_descriptors_the_agent_lives_and_takes_clients_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    real, failures = loop.sock_accept, [OSError(24, "Too many open files")]

    async def accept(listening: socket.socket) -> object:
        if failures:
            raise failures.pop()
        return await real(listening)

    monkeypatch.setattr(loop, "sock_accept", accept)
    monkeypatch.setattr(listener, "_PAUSE", 0.01)
    leaver = Leaver({})
    async with serving(path, leaver):
        await ask(path)
    assert leaver.calls == 1
