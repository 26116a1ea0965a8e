"""What goes with a command besides its words: its standard input, and failures for a callback.

Within a callback, `--best-effort` turns failures into a further run and a note for people, in the
files that the callback may write (`kontrol.master.runfiles`). What it has written itself stays: an
earlier time, a note, and junk, by which the run fails as it would without this command.
"""

import base64
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from kontrol.cli.invoke.fanout import Result
from kontrol_common.text import escaped

MAX_STDIN = 256 * 1024  # bytes; in base64 and with the rest, less than a client's longest event

AGAIN = 5.0
"""Seconds until the next run, after failures."""

_NAMED = 3  # pods that a note names
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class BadInput(ValueError):
    """Standard input for the command cannot be had; the message says why."""


def read(name: str, own: BinaryIO) -> bytes:
    """Return the content of the file `name`, of `own` for `-`. Raises `BadInput`."""
    what = "standard input" if name == "-" else name
    try:
        if name == "-":
            content = own.read(MAX_STDIN + 1)
        else:
            with Path(name).open("rb") as file:
                content = file.read(MAX_STDIN + 1)
    except (OSError, ValueError) as error:
        raise BadInput(f"{what}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MAX_STDIN:
        raise BadInput(f"{what} is over {MAX_STDIN} bytes: have the pods fetch it, and name it")
    return content


def member(content: bytes) -> Mapping[str, str]:
    """Return the member of a request that has the input: `stdin`, which all agents know.

    What is no text, or would be longer as text, goes as `stdin64`. An agent that does not know that
    refuses the request.
    """
    coded = base64.b64encode(content).decode("ascii")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return {"stdin64": coded}
    return {"stdin": text} if len(json.dumps(text)) <= len(coded) + 64 else {"stdin64": coded}


def ask_again(results: Sequence[Result], environ: Mapping[str, str]) -> None:
    """Leave failures to the next run: ask for it in `AGAIN` seconds, and say what failed.

    Raises `OSError` if that cannot be written.
    """
    from kontrol.master.runfiles import AGAIN_FILE, NOTE_FILE, RunFileError, read_again, read_note

    try:
        asked = read_again(environ)
    except RunFileError:
        asked = 0.0  # it fails the run, and says why
    if asked is None or asked > AGAIN:
        _write(environ[AGAIN_FILE], f"{AGAIN:g}\n")
    if read_note(environ) == (None, ""):
        _write(environ[NOTE_FILE], note([result for result in results if not result.ok]) + "\n")


def note(failed: Sequence[Result]) -> str:
    """Return one line that says which pods failed, and why."""
    from kontrol.master.runfiles import NOTE_LIMIT

    parts = [f"{result.target.name}: {result.why}" for result in failed[:_NAMED]]
    if more := len(failed) - _NAMED:
        parts += [f"and {more} more"] if more > 0 else []
    text = escaped("; ".join(parts)).encode("utf-8", "backslashreplace")
    return text[: NOTE_LIMIT - 1].decode("utf-8", "ignore")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, _FLAGS, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a regular file")
        os.write(descriptor, text.encode("utf-8"))
    finally:
        os.close(descriptor)
