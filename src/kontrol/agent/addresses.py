"""The addresses of a tier: looking them up, and choosing among them."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_FRESH = 10.0  # seconds for which an answer that nobody waited for is still taken


class Addresses:
    """Which address of a tier to use next: one that has not failed, else whose failure is oldest.

    So an address that works is used until it fails.
    """

    def __init__(self, shuffle: Callable[[list[str]], None]) -> None:
        self._shuffle = shuffle
        self._known: list[str] = []
        self._failed: dict[str, int] = {}
        self._failures = 0

    def __bool__(self) -> bool:
        return bool(self._known)

    def learn(self, found: Iterable[str]) -> None:
        """Replace what is known by what a look-up found; nothing found changes nothing."""
        if known := list(dict.fromkeys(found)):
            self._shuffle(known)
            self._known = known
            self._failed = {key: at for key, at in self._failed.items() if key in known}

    def choose(self) -> str:
        """Return the address to use; there must be one."""
        return min(self._known, key=lambda address: self._failed.get(address, 0))

    def failed(self, address: str) -> None:
        """Use `address` after all others."""
        self._failures += 1
        self._failed[address] = self._failures


class Resolver:
    """Looks names up without blocking the loop, one look-up at a time for each name and port.

    `getaddrinfo` can neither be cancelled nor bounded. It runs in a daemon thread of its own: in
    the loop's thread pool a resolver that hangs would hold up other tiers, and the exit of the
    process. A caller that gives up leaves the look-up to the next one, so that a resolver slower
    than every caller's patience serves all the same.
    """

    def __init__(self) -> None:
        self._pending: dict[tuple[str, int], asyncio.Future[_Found]] = {}

    async def __call__(self, host: str, port: int) -> list[str]:
        """Return the addresses of `host`. Raises `OSError`."""
        if _is_address(host):
            return [host]
        loop = asyncio.get_running_loop()
        pending = self._pending.get((host, port))
        if pending is None or (pending.done() and pending.result().at + _FRESH < loop.time()):
            pending = self._pending[host, port] = _look_up(host, port, loop)
        found = await asyncio.shield(pending)
        self._pending.pop((host, port), None)
        if found.error is not None:
            raise found.error
        return found.addresses


@dataclass(frozen=True, slots=True)
class _Found:
    """The end of a look-up: addresses or an error, and the loop time then."""

    at: float
    addresses: list[str]
    error: OSError | None = None


def _is_address(host: str) -> bool:
    return ":" in host or host.rpartition(".")[2].isdecimal()  # what parse_tiers holds for one


def _look_up(host: str, port: int, loop: asyncio.AbstractEventLoop) -> "asyncio.Future[_Found]":
    pending: asyncio.Future[_Found] = loop.create_future()

    def run() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = _Found(loop.time(), [str(info[4][0]) for info in infos])
        except OSError as error:
            found = _Found(loop.time(), [], error)
        except UnicodeError as error:  # from the IDNA codec
            found = _Found(loop.time(), [], OSError(f"{host!r} is no DNS name: {error}"))
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(pending.set_result, found)

    threading.Thread(target=run, name=f"look-up {host}", daemon=True).start()
    return pending
