"""A file that is read again when it changes: written, replaced, or behind another link."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kontrol.reloading import ReloadingFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("1")
    return path


def number(path: Path) -> ReloadingFile[int]:
    return ReloadingFile("KONTROL_X", [path], lambda: int(path.read_text("utf-8")))


def write(path: Path) -> None:
    path.write_text("22")


def replace(path: Path) -> None:
    """Another file of the same size and time."""
    other = path.with_name("other")
    other.write_text("2")
    found = path.stat()
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    other.replace(path)


def swap_link(path: Path) -> None:
    """As Kubernetes renews a mounted Secret."""
    for name in "ab":
        (path.parent / name).mkdir()
        (path.parent / name / "file").write_text("2")
    path.unlink()
    (path.parent / "data").symlink_to("b")
    path.symlink_to("data/file")


@pytest.mark.parametrize("change", [write, replace, swap_link])
def test_a_change_is_seen_however_it_comes(path: Path, change: Callable[[Path], None]) -> None:
    file = number(path)
    assert file.value == file.last == 1
    change(path)
    assert file.last == 1, "nothing looks by itself"
    assert file.value == file.last == int(path.read_text())


def test_what_is_not_valid_changes_nothing_and_is_logged_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = number(path)
    for change in (lambda: path.write_text("none"), path.unlink):
        change()
        assert [file.value, file.value] == [1, 1]
    first, second = (record.getMessage() for record in caplog.records)
    assert "KONTROL_X: invalid literal" in first
    assert "No such file" in second
    assert "what was read before stays in force" in first
    path.write_text("3")
    assert file.value == 3
    assert caplog.messages[2:] == ["KONTROL_X: read again"]


def test_the_first_time_the_caller_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        number(tmp_path / "none")


def test_the_same_content_is_the_same_object(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    file = ReloadingFile("X", [path], lambda: [path.read_text()], describe=lambda one: one[0])
    before = file.value
    os.utime(path, ns=(1, 1))
    assert file.value is before
    path.write_text("2")
    assert file.value == ["2"]
    assert caplog.messages == ["X: read again: 2"]


def test_a_change_while_it_is_read_is_seen_the_next_time(path: Path) -> None:
    def load() -> str:
        text = path.read_text()
        path.write_text("22")
        return text

    file = ReloadingFile("X", [path], load)
    assert file.last == "1"
    assert file.value == "22"
