"""The fingerprint of the callback: a hash of its command line and of the contents of its files.

A word of the command line is a path as given, relative to the daemon's folder. The first word, if
it has no slash, is the program that the PATH leads to. A folder, a device or a file that cannot be
read counts as no file.

A command line may also name files that the callback writes itself, such as a log. Each run would
then make a new callback, which is due, and so on without end. So a file that changed during each of
the last two runs counts with the content that it had before, until a run leaves it unchanged. One
run is not enough, since the change may have been an update.
"""

import contextlib
import hashlib
import os
import shlex
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Seconds. Two writes within one tick of a file system's clock (up to 10 ms) leave the same times.
_TICK = 0.1


@dataclass(frozen=True, slots=True)
class _Known:
    """A content's digest, and the file's identity, which was first seen at the time `since`."""

    identity: tuple[int, ...]
    since: float
    settled: bool
    digest: bytes


class Fingerprint:
    """The fingerprint of a command line: SHA-256 over it and over each file that a word names.

    Reading it often is cheap: a file is read again only when its inode, size or times change.
    """

    def __init__(self, command: str, path: str, *, shell: bool, clock: Callable[[], float]) -> None:
        """`path` is the PATH that the command is run with; `clock` returns seconds."""
        self._command = command
        lexer = shlex.shlex(command, posix=True, punctuation_chars=shell)  # the shell's ; | & etc.
        lexer.whitespace_split, lexer.commenters = True, ""
        try:
            self._words = list(lexer)
        except ValueError:  # the shell may split it where this does not
            self._words = command.split()
        self._folders = path.split(":")
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._before: list[bytes | None] = []
        self._written: set[int] = set()  # the words whose files changed during the last run
        self._kept: dict[int, bytes | None] = {}  # the digests of words whose files the runs write

    def read(self) -> str:
        """Return the fingerprint as of now, in hex."""
        total = hashlib.sha256(hashlib.sha256(_bytes(self._command)).digest())
        for index, content in enumerate(self._contents()):
            content = self._kept.get(index, content)
            if content is not None:
                total.update(hashlib.sha256(_bytes(self._words[index])).digest() + content)
        return total.hexdigest()

    def paths(self) -> list[Path]:
        """Return the paths by which the fingerprint may change, whether or not there is a file."""
        return [
            Path(path)
            for index in range(len(self._words))
            if index not in self._kept
            for path in self._candidates(index)
        ]

    def run_begins(self) -> None:
        """Note that the callback is about to be run."""
        self._before = list(self._contents())

    def run_ended(self) -> list[str]:
        """Note that it has ended; returns the words whose changes no longer count, for now."""
        ours = []
        written = set()
        for index, (before, now) in enumerate(zip(self._before, self._contents(), strict=True)):
            if before == now:
                self._kept.pop(index, None)
                continue
            written.add(index)
            if index in self._written and index not in self._kept:
                self._kept[index] = before
                ours.append(self._words[index])
        self._written = written
        return ours

    def _contents(self) -> Iterator[bytes | None]:
        """Yield for each word the digest of the file that it names; None if it names none."""
        for index in range(len(self._words)):
            *_, path = self._candidates(index)
            yield self._content(path)

    def _candidates(self, index: int) -> Iterator[str]:
        """Yield the paths where a word's file may be, up to the first where there is one."""
        word = self._words[index]
        if index > 0 or "/" in word:
            yield word
            return
        for folder in self._folders:
            path = f"{folder or '.'}/{word}"
            yield path
            if Path(path).is_file() and os.access(path, os.X_OK):
                return

    def _content(self, path: str) -> bytes | None:
        """Return the digest of a regular file's content; None if it is not a regular file."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL in it
            if not stat.S_ISREG(Path(path).stat().st_mode):  # opening a device may have effects
                return None
            with open(path, "rb", opener=_open) as file:  # and makes a network file system look
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    return None
                identity = (
                    found.st_dev,
                    found.st_ino,
                    found.st_size,
                    found.st_mtime_ns,
                    found.st_ctime_ns,
                )
                now, known = self._clock(), self._known.get(path)
                since = known.since if known is not None and known.identity == identity else now
                if known is None or known.identity != identity or not known.settled:
                    digest = hashlib.file_digest(file, "sha256").digest()
                    known = _Known(identity, since, now - since > _TICK, digest)
                    self._known[path] = known
                return known.digest
        return None


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
