"""The token that a master without a token file makes for the commands of its own user.

So that `kontrol release` works where the master runs (`kubectl exec`, a shell of its user, debug
mode) without anything to set up. It is as long as the process, in the folder that is this user's
alone; who can read it could as well end the process, or read its memory.
"""

import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

from kontrol.settings.booted import check_folder, run_folder

_TOKEN = re.compile(rb"[0-9A-Za-z_-]{16,128}")
_HERE = ("*", "0.0.0.0", "::", "::1", "localhost")  # noqa: S104  # compared, not bound


def path_of(environ: Mapping[str, str], host: str, port: int) -> Path:
    """Return where the token for the REST endpoint at this host and port is, if there is one."""
    return run_folder(environ) / f"{'127.0.0.1' if host in _HERE else host}_{port}.token"


def make(environ: Mapping[str, str], host: str, port: int) -> tuple[Path, str]:
    """Make a token; returns its file, which goes with the process, and it. Raises `OSError`."""
    path = path_of(environ, host, port)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    check_folder(path.parent)
    token = secrets.token_urlsafe(32)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".token-")  # mode 0600
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(f"{token}\n")
    Path(name).replace(path)
    return path, token


def read(environ: Mapping[str, str], host: str, port: int) -> str | None:
    """Return the token that this user's master made, None if there is none."""
    path = path_of(environ, host, port)
    try:
        check_folder(path.parent)
        with path.open("rb") as file:
            raw = file.read(1024).strip()
    except OSError:
        return None
    return raw.decode("ascii") if _TOKEN.fullmatch(raw) else None
