"""The callback replaced under a running master, on real files."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kontrol import filewatch, inotify
from kontrol.inotify import Inotify
from kontrol.master.callback import Callback
from kontrol.master.fingerprint import Fingerprint
from kontrol.process.clock import boottime
from kontrol.process.guard import Guard
from kontrol.settings.values import argv

DEADLINE = 30.0


def build(command: str, *, shell: bool = False, path: str = "/usr/bin:/bin") -> Callback:
    return Callback(
        command,
        argv=argv(command, shell=shell),
        shell=shell,
        timeout=None,
        environ={"PATH": path},
        secrets=(),
        guard=Guard(),
        on_stderr=lambda _: None,
        clock=boottime,
    )


def put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def replace(path: Path, text: str) -> None:
    other = path.with_name(".new")
    put(other, text)
    other.rename(path)


@asynccontextmanager
async def told(callback: Callback) -> AsyncIterator[None]:
    """The callback is changed within the block, which is told in time, with its fingerprint."""
    before = callback.fingerprint()
    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
        group.create_task(callback.changed())
        await asyncio.sleep(0)  # it waits now
        yield
    assert callback.fingerprint() != before


class Looks:
    """Counts how often the fingerprint is read."""

    def __init__(self) -> None:
        self.count = 0
        self._more = asyncio.Event()

    def add(self) -> None:
        self.count += 1
        self._more.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE):
            while self.count < count:
                self._more.clear()
                await self._more.wait()


@pytest.fixture
async def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    looks, read = Looks(), Fingerprint.read

    def counted(self: Fingerprint) -> str:
        looks.add()
        return read(self)

    monkeypatch.setattr(Fingerprint, "read", counted)
    return looks


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - /proc, not a path of ours


async def test_a_script_that_is_renamed_over(tmp_path: Path) -> None:
    hook = tmp_path / "on-change"
    put(hook, "one")
    callback = build(str(hook))
    for text in ("two", "three"):
        async with told(callback):
            replace(hook, text)


async def test_a_config_map_that_is_updated(tmp_path: Path) -> None:
    (tmp_path / "..1").mkdir()
    put(tmp_path / "..1" / "on-change", "one")
    (tmp_path / "..data").symlink_to("..1")
    hook = tmp_path / "on-change"
    hook.symlink_to("..data/on-change")
    callback = build(f"sh {hook}")
    async with told(callback):
        (tmp_path / "..2").mkdir()
        put(tmp_path / "..2" / "on-change", "two")
        (tmp_path / "..tmp").symlink_to("..2")
        (tmp_path / "..tmp").rename(tmp_path / "..data")


async def test_a_script_that_is_edited_in_place(tmp_path: Path) -> None:
    hook, library = tmp_path / "on-change", tmp_path / "library"
    put(hook, "one")
    put(library, "one")
    callback = build(f". {library}; {hook} --all", shell=True)  # noqa: S604
    async with told(callback):
        put(library, "two")
    async with told(callback):
        put(hook, "two")


async def test_a_script_that_is_deleted_and_comes_back(tmp_path: Path) -> None:
    hook = tmp_path / "folder" / "on-change"
    hook.parent.mkdir()
    put(hook, "one")
    callback = build(str(hook))
    first = callback.fingerprint()
    async with told(callback):
        hook.unlink()
        hook.parent.rmdir()
    async with told(callback):
        hook.parent.mkdir()
        put(hook, "one")
    assert callback.fingerprint() == first


async def test_a_program_in_the_path(tmp_path: Path) -> None:
    put(tmp_path / "on-change", "one")
    callback = build("on-change --all", path=f"{tmp_path}/first:{tmp_path}:/usr/bin")
    async with told(callback):
        replace(tmp_path / "on-change", "two")
    async with told(callback):
        (tmp_path / "first").mkdir()
        put(tmp_path / "first" / "on-change", "three")


async def test_a_change_before_it_is_awaited(tmp_path: Path) -> None:
    hook = tmp_path / "on-change"
    put(hook, "one")
    callback = build(str(hook))
    before = callback.fingerprint()
    replace(hook, "two")
    async with asyncio.timeout(DEADLINE):
        await callback.changed()
    assert callback.fingerprint() != before


async def test_a_change_that_has_settled_counts_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kontrol.master.callback._SETTLE_MAX", 10 * DEADLINE)
    hook = tmp_path / "on-change"
    put(hook, "one")
    callback = build(str(hook))
    callback.fingerprint()
    replace(hook, "two")
    async with asyncio.timeout(DEADLINE):
        await callback.changed()


async def test_a_change_may_be_awaited_before_anything_was_read(
    tmp_path: Path, looks: Looks
) -> None:
    hook = tmp_path / "on-change"
    put(hook, "one")
    callback = build(str(hook))
    async with asyncio.TaskGroup() as group, asyncio.timeout(DEADLINE):
        task = group.create_task(callback.changed())
        await looks.until(2)
        await asyncio.sleep(0)
        assert not task.done()
        replace(hook, "two")


async def test_what_leaves_the_contents_as_they_were_is_not_told(
    tmp_path: Path, looks: Looks
) -> None:
    hook = tmp_path / "on-change"
    put(hook, "one")
    callback = build(str(hook))
    callback.fingerprint()
    task = asyncio.create_task(callback.changed())
    await looks.until(2)
    for count in (3, 4):
        replace(hook, "one")
        await looks.until(count)
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()


async def test_a_script_that_is_being_written_is_told_when_it_is_whole(tmp_path: Path) -> None:
    hook = tmp_path / "on-change"
    put(hook, "one")
    callback = build(str(hook))
    whole = asyncio.Event()

    async def write() -> None:
        for length in range(1, 12):
            put(hook, "#" * length)
            await asyncio.sleep(0.2)
        put(hook, "whole")
        whole.set()

    callback.fingerprint()
    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        await callback.changed()
        assert whole.is_set()


async def test_many_edits_are_few_looks(
    tmp_path: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kontrol.master.callback._SETTLE_MAX", 1.5)
    hook = tmp_path / "on-change"
    put(hook, "one")
    callback = build(str(hook))
    script = 'i=0; while true; do echo $i >> "$0"; i=$((i+1)); done'
    callback.fingerprint()
    writer = await asyncio.create_subprocess_exec("sh", "-c", script, os.fspath(hook))
    try:
        start = asyncio.get_running_loop().time()
        async with asyncio.timeout(DEADLINE):
            await callback.changed()  # although it never settles
        took = asyncio.get_running_loop().time() - start
    finally:
        writer.kill()
        await writer.wait()
    assert took > 1.5
    assert looks.count < 4 + took / 0.5


@pytest.mark.parametrize("without", ["inotify", "events"])
async def test_a_file_system_without_events_is_looked_at(
    without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none() -> Inotify:
        raise OSError(24, "Too many open files")

    if without == "inotify":
        monkeypatch.setattr(filewatch, "Inotify", none)
    else:
        monkeypatch.setattr(inotify, "_LOCAL", frozenset())
        monkeypatch.setattr(Inotify, "read", lambda _: iter(()))
    caplog.set_level("INFO")
    hook = tmp_path / "on-change"
    put(hook, "one")
    callback = build(str(hook))
    async with told(callback):
        replace(hook, "two")
    assert "the callback's files: checking every 1 s:" in caplog.text


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    hook = tmp_path / "on-change"
    put(hook, "one")
    callback = build(str(hook))
    before = descriptors()
    async with told(callback):
        assert descriptors() == before + 1
        replace(hook, "two")
    assert descriptors() == before
    task = asyncio.create_task(callback.changed())
    await asyncio.sleep(0)
    assert descriptors() == before + 1
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert descriptors() == before
