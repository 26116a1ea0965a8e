"""Changes of a real file on a real file system, seen through events."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kontrol import filewatch, inotify
from kontrol.agent.payload import PayloadFile
from kontrol.ensemble.canonical import JSON
from kontrol.filewatch import Watch
from kontrol.inotify import Inotify

DEADLINE = 30.0


class Follower:
    """Follows a path as the agent does, and keeps what it saw."""

    def __init__(self, path: Path) -> None:
        self.file = PayloadFile(path)
        self.values: list[JSON] = []
        self.looks = 0
        self.sure = False
        self._seen = asyncio.Event()

    async def run(self) -> None:
        with Watch(f"payload {self.file.path}", interval=0.1) as watch:
            while True:
                watch.arm([self.file.path])
                self.sure = watch.sure
                self.file.refresh(self.values.append)
                self.looks += 1
                self._seen.set()
                await watch.changed()

    async def sees(self, value: JSON) -> None:
        async with asyncio.timeout(DEADLINE):
            while self.values[-1:] != [value]:
                self._seen.clear()
                await self._seen.wait()

    async def fails(self, error: str) -> None:
        async with asyncio.timeout(DEADLINE):
            while self.file.error is None or error not in self.file.error:
                self._seen.clear()
                await self._seen.wait()


@asynccontextmanager
async def following(path: Path, *, sure: bool = True) -> AsyncIterator[Follower]:
    follower = Follower(path)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(follower.run())
        await asyncio.sleep(0)
        assert follower.looks == 1
        assert follower.sure == sure
        yield follower
        assert follower.sure == sure
        task.cancel()


def put(path: Path, value: JSON) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def replace(path: Path, value: JSON) -> None:
    other = path.with_name(".new")
    put(other, value)
    other.rename(path)


def swap(link: Path, target: str) -> None:
    other = link.with_name("..tmp")
    other.symlink_to(target)
    other.rename(link)


async def test_a_write_in_place(tmp_path: Path) -> None:
    path = tmp_path / "payload.json"
    put(path, 1)
    async with following(path) as follower:
        await follower.sees(1)
        for value in range(2, 6):
            put(path, value)
            await follower.sees(value)


async def test_an_atomic_replacement(tmp_path: Path) -> None:
    path = tmp_path / "payload.json"
    put(path, 1)
    async with following(path) as follower:
        for value in range(2, 6):
            replace(path, value)
            await follower.sees(value)
        put(path, "in the new file")
        await follower.sees("in the new file")


async def test_the_volume_of_a_config_map(tmp_path: Path) -> None:
    """As the kubelet does it: payload.json -> ..data/payload.json, ..data -> ..N, swapped."""
    (tmp_path / "..1").mkdir()
    put(tmp_path / "..1" / "payload.json", 1)
    (tmp_path / "..data").symlink_to("..1")
    path = tmp_path / "payload.json"
    path.symlink_to("..data/payload.json")
    async with following(path) as follower:
        await follower.sees(1)
        for value in range(2, 5):
            folder = tmp_path / f"..{value}"
            folder.mkdir()
            put(folder / "payload.json", value)
            swap(tmp_path / "..data", folder.name)
            shutil.rmtree(tmp_path / f"..{value - 1}")
            await follower.sees(value)


async def test_links_that_are_absolute_go_up_or_lead_to_links(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    put(tmp_path / "c" / "real", 1)
    put(tmp_path / "c" / "other", 2)
    (tmp_path / "b" / "up").symlink_to("../c/real")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b" / "up")
    async with following(tmp_path / "a" / ".." / "a" / "link") as follower:
        await follower.sees(1)
        swap(tmp_path / "b" / "up", "../c/other")
        await follower.sees(2)
        put(tmp_path / "c" / "other", 3)
        await follower.sees(3)


async def test_a_loop_of_links_is_no_fault_until_it_is_repaired(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("y")
    (tmp_path / "y").symlink_to("x")
    async with following(tmp_path / "x") as follower:
        await follower.fails("symbolic links")
        put(tmp_path / "file", 1)
        swap(tmp_path / "y", "file")
        await follower.sees(1)


async def test_a_file_and_directories_that_come_later(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "payload.json"
    async with following(path) as follower:
        path.parent.parent.mkdir()
        path.parent.mkdir()
        put(path, 1)
        await follower.sees(1)


async def test_a_directory_moved_into_place(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    put(tmp_path / "new" / "payload.json", 1)
    async with following(tmp_path / "folder" / "payload.json") as follower:
        (tmp_path / "new").rename(tmp_path / "folder")
        await follower.sees(1)
        (tmp_path / "folder").rename(tmp_path / "old")
        await follower.fails("no such file")


async def test_deletion_and_creation(tmp_path: Path) -> None:
    path = tmp_path / "payload.json"
    put(path, 1)
    async with following(path) as follower:
        for value in range(2, 5):
            path.unlink()
            await follower.fails("no such file")
            put(path, value)
            await follower.sees(value)


async def test_a_file_where_a_directory_was(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "payload.json"
    put(tmp_path / "folder", "a file")
    async with following(path) as follower:
        (tmp_path / "folder").unlink()
        (tmp_path / "folder").mkdir()
        put(path, 1)
        await follower.sees(1)


async def test_a_half_written_file_is_taken_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "payload.json"
    async with following(path) as follower:
        with path.open("w", encoding="utf-8") as file:
            file.write('{"state": "RE')
            file.flush()
            await follower.fails("Unterminated")
            assert follower.values == []
            file.write('ADY"}')
            file.flush()  # and not closed
            await follower.sees({"state": "READY"})


async def test_a_burst_of_writes_ends_with_the_last_and_costs_few_looks(tmp_path: Path) -> None:
    path = tmp_path / "payload.json"
    async with following(path) as follower:
        for value in range(2000):
            replace(path, value)
        await follower.sees(1999)
        assert follower.looks < 20


async def test_writes_from_another_process_without_a_pause(tmp_path: Path) -> None:
    path = tmp_path / "payload.json"
    script = 'i=0; while [ $i -lt 500 ]; do echo $i > "$0.new"; mv "$0.new" "$0"; i=$((i+1)); done'
    async with following(path) as follower:
        start = asyncio.get_running_loop().time()
        writer = await asyncio.create_subprocess_exec("sh", "-c", script, os.fspath(path))
        assert await asyncio.wait_for(writer.wait(), 30) == 0
        await follower.sees(499)
        took = asyncio.get_running_loop().time() - start
        assert follower.looks < 10 + took / 0.02
        numbers = [value for value in follower.values if isinstance(value, int)]
        assert numbers == sorted(numbers)


async def test_what_happens_beside_the_file_wakes_no_reader(tmp_path: Path) -> None:
    path = tmp_path / "payload.json"
    put(path, 1)
    with Watch("file", interval=0.1) as watch:
        watch.arm([path])
        for i in range(100):
            put(tmp_path / f"other-{i}", i)
        watch._readable()  # the events are there as soon as the change is
        assert not watch._event.is_set()
        put(path, 2)
        watch._readable()
        assert watch._event.is_set()


async def test_a_directory_that_goes_while_it_is_walked_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Inotify.add

    def gone(self: Inotify, path: str, mask: int) -> int:
        if path.endswith("/folder"):
            raise FileNotFoundError(2, "No such file or directory")
        return add(self, path, mask)

    (tmp_path / "folder").mkdir()
    with monkeypatch.context() as patch, Watch("file", interval=0.1) as watch:
        patch.setattr(Inotify, "add", gone)
        watch.arm([tmp_path / "folder" / "payload.json"])
        assert watch.sure


async def test_a_file_that_may_be_read_later(tmp_path: Path) -> None:
    path = tmp_path / "payload.json"
    put(path, 1)
    path.chmod(0)
    with Watch("file", interval=0.1) as watch:
        watch.arm([path])
        path.chmod(0o600)
        async with asyncio.timeout(DEADLINE):
            await watch.changed()  # all that a test run by root can see


async def test_lost_events_cause_a_look(tmp_path: Path) -> None:
    path = tmp_path / "payload.json"
    put(path, 1)
    with Watch("file", interval=0.1) as watch:
        watch.arm([path])
        assert watch._inotify is not None
        watch._inotify.read = lambda: iter([(-1, inotify.OVERFLOW, "")])  # type: ignore[method-assign]
        watch._readable()
        async with asyncio.timeout(DEADLINE):
            await watch.changed()


async def test_without_inotify_the_file_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none() -> Inotify:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(filewatch, "Inotify", none)
    caplog.set_level("INFO")
    path = tmp_path / "payload.json"
    async with following(path, sure=False) as follower:
        put(path, 1)
        await follower.sees(1)
        replace(path, 2)
        await follower.sees(2)
    assert "checking every 0.1 s: [Errno 24] Too many open files" in caplog.text
    assert caplog.text.count("checking every") == 1


async def test_where_changes_leave_no_event_the_file_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inotify, "_LOCAL", frozenset())
    monkeypatch.setattr(Inotify, "read", lambda _: iter(()))
    path = tmp_path / "payload.json"
    async with following(path, sure=False) as follower:
        put(path, 1)
        await follower.sees(1)


async def test_watches_that_run_out_are_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: Inotify, path: str, mask: int) -> int:
        raise OSError(28, "No space left on device")

    path = tmp_path / "payload.json"
    with monkeypatch.context() as patch:
        patch.setattr(Inotify, "add", none)
        async with following(path, sure=False) as follower:
            put(path, 1)
            await follower.sees(1)


async def test_nothing_is_left_open(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - /proc, not a path of ours

    before = descriptors()
    async with following(tmp_path / "payload.json"):
        assert descriptors() == before + 1
    assert descriptors() == before


def watches(watch: Watch) -> int:
    """Ask the kernel how many there are."""
    assert watch._inotify is not None
    info = Path(f"/proc/self/fdinfo/{watch._inotify.fileno()}").read_text(encoding="utf-8")
    return info.count("inotify wd:")


async def test_a_link_that_is_moved_away(tmp_path: Path) -> None:
    put(tmp_path / "file", 1)
    link = tmp_path / "link"
    link.symlink_to("file")
    async with following(link) as follower:
        link.rename(tmp_path / "elsewhere")
        await follower.fails("no such file")


async def test_a_link_that_is_deleted(tmp_path: Path) -> None:
    put(tmp_path / "file", 1)
    link = tmp_path / "link"
    link.symlink_to("file")
    async with following(link) as follower:
        link.unlink()
        await follower.fails("no such file")


async def test_old_directories_are_no_longer_watched(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "link"
    path.symlink_to("a/file")
    with Watch("file", interval=0.1) as watch:
        watch.arm([path])
        before = watches(watch)
        for i in range(10):
            (tmp_path / str(i)).mkdir()
            swap(path, f"{i}/file")
            watch.arm([path])
            assert watches(watch) == before
