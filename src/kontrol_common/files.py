"""Replace a file as a whole: a reader sees the old content or the new, never a part.

Also as root, in a folder of others: what is beside it may be another name of any file, and what has
its name may be a device.
"""

import errno
import os
from pathlib import Path


def replace_file(path: Path, content: bytes, mode: int = 0o666, *, sync: bool = False) -> None:
    """Write `content` to `.NAME.new` beside the file, which then replaces it.

    `mode` is that of a new file, less the umask; `sync` waits for the disk. Raises `OSError`, and
    leaves the file as it was; for what is neither a regular file nor absent, with EINVAL.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file")
    beside = beside_of(path)
    beside.unlink(missing_ok=True)  # of a process that was killed, or of another user
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left) :]
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)  # some file systems say only here that there is no space
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def beside_of(path: Path) -> Path:
    """Return the file that is written first."""
    return path.with_name(f".{path.name}.new")
