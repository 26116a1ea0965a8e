"""A file is replaced as a whole, and nothing else is written to, also in a folder of others."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kontrol_common.files import beside_of, replace_file


def test_the_new_content_replaces_the_old_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"old", b"", b"x" * 300_000):
        replace_file(path, content)
        assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("sync", [False, True])
def test_the_mode_is_never_wider_than_asked_for(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "file"
    path.touch(0o644)
    replace_file(path, b"secret", 0o600, sync=sync)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("how", [os.link, os.symlink])
def test_what_stands_beside_it_is_not_written_to(
    tmp_path: Path, how: Callable[[Path, Path], None]
) -> None:
    precious, path = tmp_path / "precious", tmp_path / "file"
    precious.write_text("all I have")
    how(precious, beside_of(path))
    replace_file(path, b"new")
    assert precious.read_text() == "all I have"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("kind", ["FIFO", "folder", "device"])
def test_only_a_file_is_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    match kind:
        case "FIFO":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to("/dev/null")
    with pytest.raises(OSError, match="not a regular file"):
        replace_file(path, b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_failure_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
