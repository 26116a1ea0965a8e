"""What tells one version of the callback from another: its command line and its files' contents."""

import contextlib
import hashlib
import shlex
import stat
from pathlib import Path


class Fingerprint:
    """The fingerprint of a command line: SHA-256 over it and over each file that a word names.

    A word counts as given, from the daemon's folder; a folder, a device or what cannot be read
    counts as no file. Contents are read again only when the file's inode, size or times change, so
    asking often is cheap.
    """

    def __init__(self, command: str) -> None:
        self._command = command
        try:
            self._words = shlex.split(command)
        except ValueError:  # the shell may read it otherwise than we do
            self._words = command.split()
        self._known: dict[str, tuple[tuple[int, ...], bytes]] = {}

    def read(self) -> str:
        """Return the fingerprint as of now, in hex."""
        total = hashlib.sha256(hashlib.sha256(_bytes(self._command)).digest())
        for word in self._words:
            content = self._content(word)
            if content is not None:
                total.update(hashlib.sha256(_bytes(word)).digest() + content)
        return total.hexdigest()

    def _content(self, path: str) -> bytes | None:
        """Return the digest of a regular file's content; None if it is none."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL in it
            found = Path(path).stat()
            if stat.S_ISREG(found.st_mode):
                identity = (
                    found.st_dev,
                    found.st_ino,
                    found.st_size,
                    found.st_mtime_ns,
                    found.st_ctime_ns,
                )
                known = self._known.get(path)
                if known is None or known[0] != identity:
                    with Path(path).open("rb") as file:
                        digest = hashlib.file_digest(file, "sha256").digest()
                    known = self._known[path] = (identity, digest)
                return known[1]
        return None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
