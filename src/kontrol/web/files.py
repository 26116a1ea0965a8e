"""A file whose content is in force until it has another that is good.

Kubernetes renews a mounted Secret by swapping a symbolic link: path, size and even the time may
stay while the file behind them is another. So all that `stat` tells is compared, each time the
content is wanted; that is a few microseconds, and nothing watches while nobody asks.
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
    """What `load` makes of some files, made anew when one of them changes.

    `load` raises `ValueError` or `OSError` for content that will not do: at first to the caller,
    later to the log, and what was good stays in force.
    """

    def __init__(self, name: str, paths: Sequence[Path], load: Callable[[], T]) -> None:
        """`name` is what the log says of it: the setting that names the files."""
        self._name = name
        self._paths = paths
        self._load = load
        self._seen = self._look()
        self._value = load()

    @property
    def value(self) -> T:
        """What the files hold now, or held when they were last good."""
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            try:
                self._value = self._load()
                log.info("%s: read anew", self._name)
            except (ValueError, OSError) as error:
                log.error("%s: %s; what was read before stays in force", self._name, error)
        return self._value

    def _look(self) -> _State:
        return tuple(_state(path) for path in self._paths)


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - every microsecond counts here, a Path costs several
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
