"""What a callback may leave in files besides its state: when to run again, and a note for people.

Nothing that is found there can stop the master: it opens regular files only, without waiting, and
reads little of them. Seconds that are not a number fail the run by name, as a state that is not
JSON does: a run that was to be repeated would otherwise be forgotten. A note decides nothing, so
what cannot be shown of it is escaped, cut or left out, with a line in the log.
"""

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from kontrol.ensemble.numbers import decimal
from kontrol.master.records.fields import AGAIN_LEAST, LONGEST
from kontrol_common.text import escaped

AGAIN_FILE, NOTE_FILE = "AGAIN_FILE", "NOTE_FILE"

AGAIN_MIN, AGAIN_MAX = AGAIN_LEAST, LONGEST
NOTE_LIMIT = 1024

_AGAIN_LIMIT = 64  # bytes: digits, and white space around them
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


class RunFileError(ValueError):
    """What the callback left in a file is of no use. The text names the variable of the file."""


def output_files(folder: Path) -> dict[str, str]:
    """Return the variables that name the files which a callback may write; none exists yet."""
    return {AGAIN_FILE: str(folder / "again"), NOTE_FILE: str(folder / "note")}


def read_again(files: Mapping[str, str]) -> float | None:
    """Return in how many seconds to run again, None if the callback left nothing.

    Raises `RunFileError`.
    """
    return parse_again(_read(files, AGAIN_FILE, _AGAIN_LIMIT + 1))


def read_note(files: Mapping[str, str]) -> tuple[str | None, str]:
    """Return the note, None without one, and what was wrong with it, empty if nothing was."""
    try:
        return parse_note(_read(files, NOTE_FILE, NOTE_LIMIT + 1))
    except RunFileError as error:
        return None, f"{error}; there is no note"


def parse_again(raw: bytes) -> float | None:
    """Return the seconds that a file holds, None if it is blank. Raises `RunFileError`."""
    text = raw.decode("utf-8", "backslashreplace").strip(" \t\r\n")
    if not text and len(raw) <= _AGAIN_LIMIT:
        return None
    try:
        seconds = decimal(text)
    except ValueError:
        seconds = -1.0
    if len(raw) > _AGAIN_LIMIT or not AGAIN_MIN <= seconds <= AGAIN_MAX:
        raise RunFileError(
            f"${AGAIN_FILE} holds {text!r:.40}; expected the seconds until the next run, from "
            f"{AGAIN_MIN:g} to {AGAIN_MAX:g}, as 5 or 0.5"
        )
    return seconds


def parse_note(raw: bytes) -> tuple[str | None, str]:
    """Return one line of at most `NOTE_LIMIT` bytes, None if it is blank; and what was wrong."""
    wrong = ""
    note = escaped(" ".join(raw.decode("utf-8", "replace").split()))
    if len(raw) > NOTE_LIMIT or len(note.encode()) > NOTE_LIMIT:
        note = note.encode()[: NOTE_LIMIT - 3].decode("utf-8", "ignore") + "..."
        wrong = f"${NOTE_FILE} is longer than {NOTE_LIMIT} bytes, and cut"
    return note or None, wrong


def _read(files: Mapping[str, str], variable: str, most: int) -> bytes:
    """Return the first `most` bytes of a file, nothing if it is not there."""
    try:
        descriptor = os.open(files[variable], _FLAGS)
    except FileNotFoundError:
        return b""
    except OSError as error:
        why = "a symbolic link" if error.errno == errno.ELOOP else None
        raise _refused(variable, why or f"not readable ({error.strerror})") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _refused(variable, "not a regular file")
        return os.read(descriptor, most)
    except OSError as error:
        raise _refused(variable, f"not readable ({error.strerror})") from None
    finally:
        os.close(descriptor)


def _refused(variable: str, why: str) -> RunFileError:
    return RunFileError(f"${variable} is {why}; expected a file that the callback wrote")
