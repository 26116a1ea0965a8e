"""The payload file: JSON that an application writes and every keepalive carries.

Invariant: the payload in force is the last valid content. A file that is missing, empty, half
written, not JSON, or larger than a record can carry changes nothing: the application that wrote the
last valid payload has not withdrawn it. To withdraw it, it writes `""`, which is also the payload
before there was any valid content. A problem is logged once, not with every read.
"""

import errno
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

from kontrol.ensemble.canonical import JSON, NotJSON, parse
from kontrol.ensemble.pod import MAX_BYTES, MAX_DEPTH, BadRecord

log = logging.getLogger(__name__)

# White space does not count for the record, so that a file may be larger than one.
_MAX_FILE = 4 * MAX_BYTES


class PayloadFile:
    """The file at `path`. `error` says why its content is not in force, None if it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: str | None = None
        self._seen: bytes | None = None

    def refresh(self, update: Callable[[JSON], None]) -> None:
        """Read the file and, if its content is new and valid, `update` with its value.

        `update` may refuse a value by raising `BadRecord` or `NotJSON`.
        """
        try:
            content = read_file(self.path, _MAX_FILE, f"; a keepalive carries {MAX_BYTES}")
            if content == self._seen:
                return
            self._seen = content
            if not content.strip():
                raise NotJSON("empty")
            update(parse(content, depth=MAX_DEPTH))
        except OSError as error:
            self._seen = None
            if error.errno == errno.ENOENT:
                self._wrong("there is no such file", logging.INFO)
            else:
                self._wrong(error.strerror or str(error), logging.WARNING)
        except (BadRecord, NotJSON) as error:
            self._wrong(str(error), logging.WARNING)
        else:
            if self.error is not None:
                log.info("payload %s: in force", self.path)
            self.error = None

    def _wrong(self, error: str, level: int) -> None:
        if error != self.error:
            log.log(level, "payload %s: %s; the last valid one stays in force", self.path, error)
        self.error = error


def read_file(path: Path, most: int, hint: str = "") -> bytes:
    """Return the content of a regular file, at most `most` bytes. Raises `OSError`.

    `hint` ends the text of the error for a larger one.
    """
    with open(path, "rb", opener=_open) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"over {most} bytes{hint}")
    return content


def _open(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a FIFO would block the agent until a process opens it to write.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
