"""Files whose content is in force until they have other content that is valid.

Kubernetes renews a mounted Secret by swapping a symbolic link: path, size and even the time may
stay while the file behind them is another. So everything that `stat` says is compared, each time
the content is wanted: that takes a few microseconds, and there is nothing to watch or to stop.
"""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

_State = tuple[tuple[int, ...] | None, ...]


class ReloadingFile(Generic[T]):
    """What `load` makes of some files, made again when one of them changes.

    `load` raises `ValueError` or `OSError` for content that is not valid: the first time to the
    caller; later to the log, and what was valid stays in force.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        load: Callable[[], T],
        *,
        describe: Callable[[T], str] | None = None,
    ) -> None:
        """`name` is the setting that names the files, for the log; `describe` adds what is new."""
        self._name = name
        self._paths = paths
        self._load = load
        self._describe = describe
        self._seen = self._look()  # before it is read, so that no change falls between
        self.last = load()
        """What was in force at the last look."""

    @property
    def value(self) -> T:
        """What is in force now; another object only if the content is another."""
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            try:
                loaded = self._load()
            except (ValueError, OSError) as error:
                log.error("%s: %s; what was read before stays in force", self._name, error)
                return self.last
            if loaded != self.last:
                self.last = loaded
                news = f": {self._describe(loaded)}" if self._describe is not None else ""
                log.info("%s: read again%s", self._name, news)
        return self.last

    def _look(self) -> _State:
        return tuple(_state(path) for path in self._paths)


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - every microsecond counts here, a Path costs several
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
