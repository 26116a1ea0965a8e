"""This process as the system sees it: its limits, and the children that its parts await.

The one error that ends the daemon for its configuration.
"""

import errno
import resource
import socket
from collections.abc import Callable, Collection

from kontrol.rpc.errors import BindError


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


def check_port(host: str, port: int) -> None:
    """See that nobody listens at an address, and that it is ours. Raises `BindError`.

    So that a process that cannot listen ends before it has begun, though it listens later.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("" if host == "*" else host, port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                return  # what it is, the endpoint itself tells
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            raise BindError.of(f"tcp://{where}", error.errno) from None


class StartupError(Exception):
    """The daemon cannot do what it was configured to; the message says what to change."""
