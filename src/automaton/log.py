"""The log: a file that rotates, and standard error. Neither can stop or delay the machine.

Each record is one `write`, so that no buffer can fail later. If the disk is full, records are lost;
that is reported once on standard error, and once in the log when there is room again. Standard
error may be a pipe that is not read: what it cannot accept without waiting is dropped.
"""

import logging
import os
import select
import sys
import time
from pathlib import Path

from kontrol_common.text import escaped

MAX_BYTES = 8 * 1024 * 1024
KEPT = 3
_PIPE_BUF = 4096  # what a pipe that polls as writable accepts without blocking, pipe(7)


class _Format(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's lines, with all control characters escaped."""
        return escaped(super().format(record), keep="\t\n")


def _bytes(handler: logging.Handler, record: logging.LogRecord) -> bytes:
    return (handler.format(record) + "\n").encode("utf-8", "backslashreplace")


class FileLog(logging.Handler):
    """A log file of at most `MAX_BYTES`, and its `KEPT` predecessors `.1`, `.2` and so on.

    Raises `OSError` if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path.absolute()
        self._lost = 0
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o644)
        self._size = os.fstat(self._fd).st_size

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, after rotating if it would not fit."""
        data = _bytes(self, record)
        try:
            if self._size + len(data) > MAX_BYTES and self._path.is_file():
                self._rotate()
            if self._lost:
                note = f"(the log could not be written: {self._lost} records are lost)\n"
                self._write(note.encode())
            self._write(data)
        except OSError as error:
            self._lost += 1
            if self._lost == 1:
                text = f"{self._path}: {error.strerror}; records are lost until there is room"
                _write_stderr(f"automaton: {text}\n".encode())
        else:
            self._lost = 0

    def _write(self, data: bytes) -> None:
        self._size += os.write(self._fd, data)

    def _rotate(self) -> None:
        for number in range(KEPT, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number - 1}")
            source = older if number > 1 else self._path
            if source.exists():
                source.replace(self._path.with_name(f"{self._path.name}.{number}"))
        os.close(self._fd)
        self._open()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
        super().close()


class ErrorLog(logging.Handler):
    """Standard error, as far as it accepts records without waiting."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or as much of it as fits."""
        _write_stderr(_bytes(self, record))


def _write_stderr(data: bytes) -> None:
    try:
        poll = select.poll()
        poll.register(sys.__stderr__ or 2, select.POLLOUT)
        for start in range(0, len(data), _PIPE_BUF):
            if not any(event & select.POLLOUT for _, event in poll.poll(0)):
                return
            os.write(2, data[start : start + _PIPE_BUF])
    except OSError:
        return  # closed


def configure(path: Path, debug: bool) -> None:
    """Send the log to the file, and warnings, or in debug everything, to standard error."""
    log = logging.getLogger("automaton")
    log.propagate = False
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    error = ErrorLog(logging.DEBUG if debug else logging.WARNING)
    error.setFormatter(_Format("automaton: %(message)s"))
    log.addHandler(error)
    try:
        file = FileLog(path)
    except OSError as problem:
        log.warning("no log file: %s: %s; name another with -l", path, problem.strerror)
        return
    file.setFormatter(_Format("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(file)
