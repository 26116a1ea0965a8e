"""Looks names up: the one place that asks the system's resolver.

`getaddrinfo` blocks, for over a minute when name servers do not answer, and can be neither
cancelled nor bounded. So each look-up has a daemon thread (docs/decisions/0064): in a pool of
threads one that hangs would hold up others, and the exit of the process. A caller that gives up
leaves it behind.

On an event loop use `Resolver`, or `resolve` for a single name; elsewhere `look_up`. asyncio is
imported where a loop runs, since a command that asks a master does without.
"""

import contextlib
import queue
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import asyncio

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Returns the addresses of a name, for a port. Raises `OSError`."""

_RECENT = 10.0  # seconds for which an answer that no caller waited for is used


class _Found(NamedTuple):
    """The end of a look-up: addresses or an error."""

    addresses: list[str]
    error: OSError | None = None

    def get(self) -> list[str]:
        if self.error is not None:
            raise self.error
        return self.addresses


class Resolver:
    """Looks names up off the event loop, one look-up at a time for each name and port.

    The look-up of a caller that gave up serves the next one, so that a resolver that is slower than
    every caller's timeout serves all the same.
    """

    def __init__(self) -> None:
        self._pending: dict[tuple[str, int], asyncio.Future[tuple[float, _Found]]] = {}

    async def __call__(self, host: str, port: int) -> list[str]:
        """Return the addresses of `host`, each once. Raises `OSError`."""
        import asyncio

        if is_address(host):
            return [host]
        now = asyncio.get_running_loop().time()
        pending = self._pending.get((host, port))
        if pending is None or (pending.done() and pending.result()[0] + _RECENT < now):
            pending = self._pending[host, port] = _begin(host, port)
        _, found = await asyncio.shield(pending)
        self._pending.pop((host, port), None)
        return found.get()


async def resolve(host: str, port: int) -> list[str]:
    """Look one name up, as `Resolver` does. Raises `OSError`."""
    return await Resolver()(host, port)


def look_up(host: str, port: int, timeout: float) -> list[str]:
    """Return the addresses of `host`, each once; blocks for at most `timeout` seconds.

    Raises `OSError`: `TimeoutError` if the resolver takes longer.
    """
    if is_address(host):
        return [host]
    found: queue.SimpleQueue[_Found] = queue.SimpleQueue()
    _start(host, port, found.put)
    try:
        return found.get(timeout=timeout).get()
    except queue.Empty:
        raise TimeoutError(f"{host!r} was not found within {timeout:g} s") from None


def is_address(host: str) -> bool:
    """Return whether `host` is an address. No DNS name has a colon, or ends with a number."""
    return ":" in host or host.rpartition(".")[2].isdecimal()


def _begin(host: str, port: int) -> "asyncio.Future[tuple[float, _Found]]":
    """Begin a look-up; its future has the loop time of its end."""
    import asyncio

    loop = asyncio.get_running_loop()
    pending: asyncio.Future[tuple[float, _Found]] = loop.create_future()

    def done(found: _Found) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: no caller waits any more
            loop.call_soon_threadsafe(pending.set_result, (loop.time(), found))

    _start(host, port, done)
    return pending


def _start(host: str, port: int, done: Callable[[_Found], None]) -> None:
    """Have a thread look `host` up and call `done`. Raises `OSError` if there can be no thread."""
    # For a text, Python loads its IDNA codec, with 0.4 MB of Unicode tables.
    name = host.encode("ascii") if host.isascii() else host

    def run() -> None:
        try:
            infos = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
            found = _Found(list(dict.fromkeys(str(info[4][0]) for info in infos)))
        except OSError as error:
            found = _Found([], error)
        except ValueError as error:  # from the IDNA codec, or for a NUL
            found = _Found([], OSError(f"{host!r} is no DNS name: {error}"))
        done(found)

    try:
        threading.Thread(target=run, name=f"look-up {host}", daemon=True).start()
    except RuntimeError as error:
        raise OSError(f"no thread to look {host!r} up: {error}") from None
