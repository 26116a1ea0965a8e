"""What is sent to systemd: that a daemon is ready, that it is alive, and that it is ending."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from tests.agent.test_process import DEADLINE, Masters, agent, ended
from tests.rpc.support import until
from tests.support.etcd import free_port
from tests.support.simloop import virtual

from kontrol.daemon.notify import LATEST, Notifier
from kontrol.rpc.client import Client

SOCKET = "/run/systemd/notify"


class Recorder(Notifier):
    """Keeps what is said, with the time."""

    def __init__(self, watchdog: float | None = None) -> None:
        super().__init__(SOCKET, watchdog)
        self.said: list[tuple[float, str]] = []

    def send(self, *assignments: str) -> None:
        now = asyncio.get_running_loop().time()
        self.said += [(now, one) for one in assignments]

    def times(self, assignment: str) -> list[float]:
        return [at for at, one in self.said if one == assignment]


@asynccontextmanager
async def telling(recorder: Recorder, **waits: asyncio.Event) -> AsyncIterator[float]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(recorder.run(waits))
        await asyncio.sleep(0)
        yield asyncio.get_running_loop().time()
        task.cancel()


@virtual
async def test_it_is_ready_once_all_that_it_waits_for_is_there() -> None:
    recorder, etcd, tier = Recorder(), asyncio.Event(), asyncio.Event()
    async with telling(recorder, etcd=etcd, tier=tier) as start:
        await asyncio.sleep(1)
        etcd.set()
        await asyncio.sleep(1)
        assert [one for _, one in recorder.said] == ["STATUS=waiting for etcd, tier"]
        tier.set()
        await asyncio.sleep(1)
        assert recorder.times("READY=1") == [start + 2]
        assert recorder.said[-1][1] == "STATUS=ready"


@virtual
async def test_an_outage_elsewhere_does_not_hold_up_the_start() -> None:
    recorder, etcd, tier = Recorder(), asyncio.Event(), asyncio.Event()
    async with telling(recorder, etcd=etcd, tier=tier) as start:
        etcd.set()
        await asyncio.sleep(10 * LATEST)
        assert recorder.times("READY=1") == [start + LATEST]
        assert recorder.said[-1][1] == "STATUS=started, waiting for tier"
        tier.set()
        await asyncio.sleep(1)
        assert recorder.said[-1][1] == "STATUS=ready"
        assert len(recorder.times("READY=1")) == 1


@virtual
async def test_the_watchdog_is_fed_from_the_start_thrice_in_its_time() -> None:
    recorder = Recorder(watchdog=30.0)
    async with telling(recorder, etcd=asyncio.Event()) as start:
        await asyncio.sleep(95)
    assert recorder.times("WATCHDOG=1") == [start + 10 * n for n in range(10)]


@pytest.mark.parametrize(
    ("environ", "path", "watchdog"),
    [
        ({}, None, None),
        ({"NOTIFY_SOCKET": SOCKET}, SOCKET, None),
        ({"NOTIFY_SOCKET": "@name", "WATCHDOG_USEC": "30000000"}, "@name", 30.0),
        ({"NOTIFY_SOCKET": SOCKET, "WATCHDOG_USEC": "30", "WATCHDOG_PID": "1"}, SOCKET, None),
        (
            {"NOTIFY_SOCKET": SOCKET, "WATCHDOG_USEC": "9", "WATCHDOG_PID": str(os.getpid())},
            SOCKET,
            9e-6,
        ),
        ({"NOTIFY_SOCKET": SOCKET, "WATCHDOG_USEC": "soon"}, SOCKET, None),
        ({"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "30"}, None, None),
    ],
)
def test_what_systemd_says_is_read_and_kept_from_children(
    environ: dict[str, str], path: str | None, watchdog: float | None
) -> None:
    rest = {**environ, "PATH": "/bin"}
    notifier = Notifier.take(rest)
    assert (notifier._path, notifier._watchdog) == (path, watchdog)
    assert rest == {"PATH": "/bin"}


def test_a_socket_that_is_gone_is_no_error(tmp_path: Path) -> None:
    Notifier(str(tmp_path / "none")).send("READY=1")


@contextmanager
def systemd(folder: Path, *, abstract: bool = False) -> Iterator[tuple[str, socket.socket]]:
    """Listen as systemd does."""
    name = f"@kontrol-{os.getpid()}-{folder.name}" if abstract else str(folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0", 1) if abstract else name)
        sock.settimeout(0)
        yield name, sock


class Heard:
    """What came to systemd's socket, in order."""

    def __init__(self, sock: socket.socket) -> None:
        self.said: list[str] = []
        self._sock = sock

    def look(self, *wanted: str) -> bool:
        """Take what has come; tell whether all of `wanted` has."""
        while True:
            try:
                self.said += self._sock.recv(4096).decode().split("\n")
            except BlockingIOError:
                return set(wanted) <= set(self.said)


@pytest.mark.parametrize("abstract", [False, True])
async def test_a_real_agent_is_ready_once_it_is_acknowledged(
    tmp_path: Path, abstract: bool
) -> None:
    masters = Masters()
    masters.port = free_port()
    with systemd(tmp_path, abstract=abstract) as (name, sock):
        heard = Heard(sock)
        more = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "300000"}
        async with agent(masters, tmp_path, more) as process:
            await until(lambda: heard.look("WATCHDOG=1"), DEADLINE)
            await until(lambda: heard.look() and len(heard.said) > 1, DEADLINE)
            assert f"STATUS=waiting for 127.0.0.1:{masters.port}" in heard.said
            assert "READY=1" not in heard.said
            async with masters.serving(masters.port):
                await until(lambda: heard.look("READY=1", "STATUS=ready"), DEADLINE)
                heard.said.clear()
                await until(lambda: heard.look() and heard.said.count("WATCHDOG=1") > 3, DEADLINE)
                process.terminate()
                assert await ended(process) == 0
                assert heard.look("STOPPING=1")


async def test_commands_do_not_get_systemds_socket(tmp_path: Path) -> None:
    masters = Masters()
    port = free_port()
    with systemd(tmp_path) as (name, sock):
        more = {
            "NOTIFY_SOCKET": name,
            "WATCHDOG_USEC": "300000",
            "KONTROL_INVOKE": "insecure",
            "KONTROL_PORT": str(port),
        }
        async with masters.serving(), agent(masters, tmp_path, more):
            heard = Heard(sock)
            await until(lambda: heard.look("READY=1"), DEADLINE)
            async with Client("127.0.0.1", port) as client:
                told = await client.call("invoke", '{"cmd": "env"}', timeout=DEADLINE)
    assert isinstance(told, str)
    assert "KONTROL_ID=pod-1" in told
    assert "NOTIFY_SOCKET" not in told
    assert "WATCHDOG" not in told
