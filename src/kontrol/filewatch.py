"""Awaits changes of the files that paths lead to, whatever the paths go through.

Each path is walked as the kernel walks it, symbolic links included. Every directory in which a name
is looked up on the way is watched for that name, and the file at the end for its content. So a
rename over the file, a directory that does not exist yet, and the swap of a link anywhere on the
way (the `..data` of a Kubernetes volume) are all seen. One inotify instance serves all paths.

Invariant: a directory is watched before the name is looked up in it, and the file before it is
read. So a change that the walk or the reader missed has left an event.

Where the kernel cannot report changes (no inotify, none left, a directory that may not be read, a
file system that changes elsewhere), `changed` returns at a fixed interval instead.
"""

import asyncio
import logging
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self

from kontrol import inotify
from kontrol.inotify import Inotify

log = logging.getLogger(__name__)

_SETTLE = 0.02  # seconds for a burst to end, so that it is one change; a lone rename needs none
_MAX_LINKS = 40  # as the kernel: path_resolution(7)

_DIRECTORY = (
    inotify.CREATE | inotify.DELETE | inotify.MOVED_FROM | inotify.MOVED_TO | inotify.ATTRIB
)
_FILE = inotify.MODIFY  # its directory's watch reports the rest


class Watch:
    """Watches files: `arm`, read them, await `changed`, and again. A context manager.

    Make it on the running loop. `sure` says that there is an event for every change.
    """

    def __init__(self, name: str, *, interval: float) -> None:
        """`name` is for the log; `interval`, in seconds, is how often to check without events."""
        self._name = name
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._whole = False  # whether the change came by a rename, complete in one step
        self._last = float("-inf")
        self._names: dict[int, set[str]] = {}  # of each watch; '' stands for the inode itself
        self._inotify: Inotify | None = None
        self.sure = True
        try:
            self._inotify = Inotify()
            self._loop.add_reader(self._inotify.fileno(), self._readable)
        except OSError as error:
            self._judge(str(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._inotify is not None:
            self._loop.remove_reader(self._inotify.fileno())
            self._inotify.close()

    def arm(self, paths: Iterable[Path]) -> None:
        """Watch what these paths, and no others, go through now; to be called before reading."""
        if self._inotify is None:
            return
        before, self._names = self._names, {}
        doubts = []
        for path in paths:
            try:
                doubts.append(self._walk(self._inotify, path.absolute().as_posix()))
            except OSError as error:
                doubts.append(str(error))
        self._judge(next((doubt for doubt in doubts if doubt is not None), None))
        for watch in before.keys() - self._names.keys():
            self._inotify.remove(watch)

    async def changed(self) -> None:
        """Return soon after the next change, or after the interval."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if self.sure else self._interval):
                await self._event.wait()
                if not self._whole or self._loop.time() < self._last + _SETTLE:
                    await asyncio.sleep(_SETTLE)
        self._event.clear()
        self._whole = False
        self._last = self._loop.time()

    def _judge(self, doubt: str | None) -> None:
        if self.sure and doubt is not None:
            log.info("%s: checking every %g s: %s", self._name, self._interval, doubt)
        self.sure = doubt is None

    def _readable(self) -> None:
        assert self._inotify is not None  # noqa: S101 - it is what became readable
        for watch, mask, name in self._inotify.read():
            if mask & inotify.OVERFLOW or name in self._names.get(watch, ()):
                self._whole |= bool(mask & inotify.MOVED_TO)
                self._event.set()

    def _walk(self, events: Inotify, path: str) -> str | None:
        """Watch the way down to the file of `path`, or to where it breaks off.

        Returns why events may be missing, None if they are not. Raises `OSError`.
        """
        current, todo, links = "/", path.split("/")[::-1], 0
        mode, foreign = stat.S_IFDIR, None
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                current = current.rpartition("/")[0] or "/"
                continue
            if not self._add(events, current, name, _DIRECTORY):
                return foreign
            if foreign is None and not events.local(current):
                foreign = f"the file system of {current} may change without an event"
            below = f"{current.rstrip('/')}/{name}"
            try:
                mode = os.lstat(below).st_mode
                target = str(Path(below).readlink()) if stat.S_ISLNK(mode) else None
            except OSError:
                return foreign
            if target is None:
                current = below
                continue
            links += 1
            if links > _MAX_LINKS:
                return foreign
            if target.startswith("/"):
                current = "/"
            todo.extend(target.split("/")[::-1])
        self._add(events, current, "", _DIRECTORY if stat.S_ISDIR(mode) else _FILE)
        return foreign

    def _add(self, events: Inotify, path: str, name: str, mask: int) -> bool:
        """Watch `path` for `name`; False if it is gone, which its parent's watch has reported."""
        try:
            watch = events.add(path, mask)
        except (FileNotFoundError, NotADirectoryError):
            return False
        self._names.setdefault(watch, {""}).add(name)
        return True
