"""What belongs to this user alone: its folder, the files of its secrets, and the local token.

A master without KONTROL_TOKEN_FILE makes a token for the commands of its own user, so that `kontrol
release` works where the master runs (`kubectl exec`, a shell of its user, debug mode) without
anything to set up. The token lives as long as the process, in a folder that only this user can
enter: who can read it there could as well end the process, or read its memory.
"""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from kontrol_common.files import replace_file

_TOKEN = re.compile(rb"[0-9A-Za-z_-]{16,128}")
_HERE = ("*", "0.0.0.0", "::", "::1", "localhost")  # noqa: S104  # compared, not bound


class NotPrivate(OSError):
    """The folder belongs to another user, or others may write there."""


def run_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of this user's running processes: in `$XDG_RUNTIME_DIR`, else `/tmp`."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime) if runtime else Path("/tmp")  # noqa: S108 - checked before it is used
    return folder / f"kontrol-{os.getuid()}"


def check_folder(folder: Path) -> None:
    """Raise `OSError` if others than this user could have put something there."""
    found = folder.lstat()
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    if found.st_uid != os.getuid() or not private:
        raise NotPrivate(f"{folder} is not a directory of this user alone (mode 0700)")


def exposed(path: Path) -> str | None:
    """Describe how a file with a secret can be read by others than its owner; None if it cannot.

    Also None for a file that does not exist: that is reported elsewhere.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    mode = found.st_mode & 0o777
    # A file of another owner is ours by its group alone: in Kubernetes, the fsGroup.
    if not mode & (0o077 if found.st_uid == os.geteuid() else 0o007):
        return None
    return (
        f"{path} can be read by more than its owner (mode {mode:03o}): expected 600, or in"
        " Kubernetes `defaultMode: 0440` with an fsGroup"
    )


def token_path(environ: Mapping[str, str], host: str, port: int) -> Path:
    """Return where the token for the REST endpoint at this host and port is, if there is one."""
    return run_folder(environ) / f"{'127.0.0.1' if host in _HERE else host}_{port}.token"


def make_token(environ: Mapping[str, str], host: str, port: int) -> tuple[Path, str]:
    """Make a token; returns its file, to be removed with the process, and it. Raises `OSError`."""
    import secrets

    path = token_path(environ, host, port)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    check_folder(path.parent)
    token = secrets.token_urlsafe(32)
    replace_file(path, f"{token}\n".encode(), 0o600)
    return path, token


def read_token(environ: Mapping[str, str], host: str, port: int) -> str | None:
    """Return the token that this user's master made, None if there is none."""
    path = token_path(environ, host, port)
    try:
        check_folder(path.parent)
        with path.open("rb") as file:
            raw = file.read(1024).strip()
    except OSError:
        return None
    return raw.decode("ascii") if _TOKEN.fullmatch(raw) else None
