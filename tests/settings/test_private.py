"""The token that a master makes for its own user."""

import os
import stat
from pathlib import Path

import pytest

from kontrol.settings import private


def test_it_is_read_for_the_endpoint_that_it_is_for(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    path, token = private.make_token(environ, "*", 8001)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.lstat().st_mode) == 0o700
    for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0"):
        assert private.read_token(environ, host, 8001) == token
    assert private.read_token(environ, "127.0.0.1", 8002) is None
    assert private.read_token(environ, "10.0.0.7", 8001) is None
    assert private.make_token(environ, "*", 8001)[1] != token
    assert [each.name for each in path.parent.iterdir()] == ["127.0.0.1_8001.token"]


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 2000, b"\xff" * 40, b"a b" * 20])
def test_junk_is_no_token(tmp_path: Path, content: bytes) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    path, _ = private.make_token(environ, "10.0.0.7", 1)
    path.write_bytes(content)
    assert private.read_token(environ, "10.0.0.7", 1) is None


def test_a_folder_that_others_may_enter_is_not_used(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    folder = tmp_path / f"kontrol-{os.getuid()}"
    folder.mkdir(mode=0o755)
    with pytest.raises(OSError, match="not a directory of this user alone"):
        private.make_token(environ, "*", 1)
    (folder / "127.0.0.1_1.token").write_text("0123456789abcdef0123\n", "utf-8")
    assert private.read_token(environ, "127.0.0.1", 1) is None
