"""What all parts of the daemon share: the error that ends it, its children, its system limits."""

import errno
import resource
import socket
from collections.abc import Callable, Collection

from kontrol.listener import BindError


class StartupError(Exception):
    """The daemon cannot do what it was configured to; the message says what to change."""


class Children:
    """The process ids of all children that a part awaits: other children are adopted orphans."""

    def __init__(self) -> None:
        self.pids: set[int] = set()
        self._sources: list[Callable[[], Collection[int]]] = []

    def of(self, source: Callable[[], Collection[int]]) -> None:
        """Include the process ids that `source` returns, whenever `known` is called."""
        self._sources.append(source)

    def known(self) -> set[int]:
        """Return all of them."""
        return self.pids.union(*(source() for source in self._sources))


def raise_limits() -> None:
    """Raise the limit of file descriptors as far as allowed: each pod is a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 20), hard))


def check_port(host: str, port: int) -> None:
    """Check that an address is this host's and not in use. Raises `BindError`.

    A process that cannot listen thus ends before it starts any work, although it listens later.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("" if host == "*" else host, port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                return  # the endpoint reports it when it binds
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            raise BindError.of(f"tcp://{where}", error.errno) from None
