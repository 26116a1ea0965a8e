"""This process as the system sees it: its limits, and the children that its parts await."""

import resource
from collections.abc import Callable, Collection


class Children:
    """The ids of all children that somebody here awaits: others that fall to us are orphans."""

    def __init__(self) -> None:
        self.pids: set[int] = set()
        self._sources: list[Callable[[], Collection[int]]] = []

    def of(self, source: Callable[[], Collection[int]]) -> None:
        """Count what `source` returns, whenever it is asked, among them."""
        self._sources.append(source)

    def known(self) -> set[int]:
        """Return them all."""
        return self.pids.union(*(source() for source in self._sources))


def raise_limits() -> None:
    """Take as many file descriptors as the system lets us: a pod is a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 20), hard))
