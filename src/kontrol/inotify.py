"""Linux's inotify(7) and statfs(2), as much of them as watching files takes.

With ctypes: the standard library has neither, and a package for these four calls would be larger
than they are.
"""

import ctypes
import os
import struct
from collections.abc import Iterator

MODIFY = 0x002
ATTRIB = 0x004
MOVED_FROM = 0x040
MOVED_TO = 0x080
CREATE = 0x100
DELETE = 0x200
OVERFLOW = 0x4000  # in an event: some were lost

_HEADER = struct.Struct("iIII")  # watch, mask, cookie, length of the name
_BUFFER = 64 * 1024
_STATFS = 256  # bytes, more than any struct statfs has

# File systems whose changes the kernel itself makes, so that it can report all of them; statfs(2)
# lists the numbers. On others (NFS, FUSE, 9p...) changes are made elsewhere, without an event.
_LOCAL = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0xCA451A4E,  # bcachefs
        0xF2F52010,  # f2fs
        0x2FC12FC1,  # zfs
        0x01021994,  # tmpfs
        0x858458F6,  # ramfs
        0x794C7630,  # overlayfs
    }
)


class Inotify:
    """An inotify instance; `fileno` is readable when there are events. Raises `OSError`."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        try:
            init = self._libc.inotify_init1
        except AttributeError:  # not Linux
            raise OSError("this system has no inotify") from None
        self._fd: int = self._checked(init(os.O_NONBLOCK | os.O_CLOEXEC))

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def add(self, path: str, mask: int) -> int:
        """Watch `path` and return the watch; one for the same inode is used again."""
        return self._checked(self._libc.inotify_add_watch(self._fd, os.fsencode(path), mask))

    def remove(self, watch: int) -> None:
        """End a watch; one that has ended with its inode is not an error."""
        self._libc.inotify_rm_watch(self._fd, watch)

    def read(self) -> Iterator[tuple[int, int, str]]:
        """Read the pending events: watch, mask, and name within a directory, or ''."""
        try:
            data = os.read(self._fd, _BUFFER)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, mask, _, length = _HEADER.unpack_from(data, at)
            at += _HEADER.size
            yield watch, mask, os.fsdecode(data[at : at + length].rstrip(b"\0"))
            at += length

    def local(self, path: str) -> bool:
        """Return whether the file system of `path` reports every change."""
        result = ctypes.create_string_buffer(_STATFS)
        if self._libc.statfs(os.fsencode(path), result) != 0:
            return False
        kind: int = ctypes.c_long.from_buffer(result).value  # f_type comes first
        return kind & 0xFFFFFFFF in _LOCAL

    def close(self) -> None:
        """Close the descriptor and end all watches."""
        os.close(self._fd)

    def _checked(self, result: int) -> int:
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result
