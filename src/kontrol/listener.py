"""Listens on TCP, accepts connections, and bounds their number.

Where there are too many, a connection that waits for a request gives way to the newest: to refuse
the newest would let a client that holds connections open keep out the probes by which Kubernetes
judges the pod (docs/decisions/0113).

Invariant: every connection has exactly one task, and `serve` returns only when all have ended.
"""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Never, Protocol

from kontrol.resolver import resolve

log = logging.getLogger(__name__)

_PAUSE = 0.1  # seconds before accepting again, when the system could not
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# The connection that was to be accepted is gone, or the network is: accept(2) says to go on.
_GONE = (
    *(errno.ECONNABORTED, errno.EPROTO, errno.ENOPROTOOPT, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EOPNOTSUPP),
)


class BindError(Exception):
    """A server cannot listen where it should; `taken` if another process listens there."""

    taken = False

    @classmethod
    def of(cls, where: str, number: int | None, fix: str = "") -> "BindError":
        """Say why the system refused `where`, by its error's `number`, and what to do.

        `fix` is what helps unless it is the address that is wrong.
        """
        why = os.strerror(number or 0)
        if number == errno.EADDRINUSE:
            why += " (another process listens there)"
        elif number == errno.EADDRNOTAVAIL:
            fix = "; this host has no such address: set KONTROL_BIND to one that it has, or to *"
        made = cls(f"cannot listen on {where}: {why}{fix}")
        made.taken = number == errno.EADDRINUSE
        return made


class Talk(Protocol):
    """A connection as the listener sees it, once its protocol is under way."""

    @property
    def waiting(self) -> bool:
        """Whether it waits for a request, so that nothing is lost if it ends now."""

    @property
    def unread(self) -> bool:
        """Whether its client has yet to take what was sent."""


@dataclass(eq=False, slots=True)
class Guest:
    """A connection: its client's address, its task, and its `talk` once that is under way."""

    peer: str
    task: asyncio.Task[None] | None = None
    talk: Talk | None = None

    @property
    def waiting(self) -> bool:
        """Whether it may be evicted before others."""
        return self.talk is None or self.talk.waiting

    @property
    def unread(self) -> bool:
        """Whether it may be evicted if none waits."""
        return self.talk is not None and self.talk.unread


class Listener:
    """Serves connections by `converse`, which owns the socket. `bind`, then `serve`.

    At most `connections`, and `per_address` of one address; the kernel holds `backlog` that are not
    accepted yet. `accepted`, `evicted` and `failed` count connections.
    """

    def __init__(
        self,
        converse: Callable[[socket.socket, Guest], Awaitable[None]],
        *,
        connections: int,
        per_address: int,
        backlog: int = 128,
    ) -> None:
        self.accepted = 0
        self.evicted = 0
        self.failed = 0
        self._converse = converse
        self._most = connections
        self._per_address = per_address
        self._backlog = backlog
        self._socket: socket.socket | None = None
        self._guests: dict[Guest, None] = {}  # the oldest first
        self._tasks: set[asyncio.Task[None]] = set()  # of those that were evicted, too

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._guests)

    async def bind(self, host: str, port: int, *, name: str = "", fix: str = "") -> int:
        """Listen on `host` ("" or "*": all addresses, IPv6 too) and return the port.

        Port 0 lets the system choose. Raises `BindError`, which has the `name` of what is to listen
        and the `fix` that helps.
        """
        try:
            self._socket = await listen("" if host == "*" else host, port, self._backlog)
        except OSError as error:
            where = f"{host or '*'} port {port}{f' for {name}' if name else ''}"
            if (error.errno or 0) > 0:
                raise BindError.of(where, error.errno, fix) from None
            # `host` is a name that the resolver does not know.
            fix = "set KONTROL_BIND to an address of this host, or to *"
            raise BindError(f"cannot listen on {where}: {error.strerror or error}; {fix}") from None
        self._socket.setblocking(False)  # noqa: FBT003 - the standard library's signature
        bound: int = self._socket.getsockname()[1]
        return bound

    async def serve(self) -> Never:
        """Serve until cancelled; then end the connections, await them, and close the socket."""
        if self._socket is None:
            raise BindError("serve() was called before bind()")
        try:
            while True:
                self._admit(*await accept(self._socket, self._make_room))
        finally:
            self.close()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    def close(self) -> None:
        """Close the listening socket. `serve` does so itself, if it came to run at all."""
        if self._socket is not None:
            self._socket.close()

    def _admit(self, accepted: socket.socket, peer: str) -> None:
        self.accepted += 1
        guest = Guest(peer)
        same = sum(other.peer == peer for other in self._guests)
        if (same >= self._per_address and not self._evict(lambda other: other.peer == peer)) or (
            len(self._guests) >= self._most and not self._evict(lambda _: True)
        ):
            self.evicted += 1
            accepted.close()
            return
        self._guests[guest] = None
        guest.task = task = asyncio.get_running_loop().create_task(self._run(accepted, guest))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(guest, accepted, task))

    def _make_room(self) -> None:
        self._evict(lambda _: True)

    def _evict(self, which: Callable[[Guest], bool]) -> bool:
        """End the oldest connection that waits for a request, else that reads no answers.

        Returns False if there is none.
        """
        for gives_way in (attrgetter("waiting"), attrgetter("unread")):
            for guest in self._guests:
                if which(guest) and gives_way(guest) and guest.task is not None:
                    self.evicted += 1
                    del self._guests[guest]
                    guest.task.cancel()
                    return True
        return False

    async def _run(self, accepted: socket.socket, guest: Guest) -> None:
        try:
            await self._converse(accepted, guest)
        except asyncio.CancelledError:
            # Evicted, or at the end: no task waits for the outcome. The error would keep all frames
            # and buffers in a cycle until the collector comes, and many may be evicted together.
            return

    def _ended(self, guest: Guest, accepted: socket.socket, task: asyncio.Task[None]) -> None:
        self._guests.pop(guest, None)
        self._tasks.discard(task)
        accepted.close()  # for a task that was cancelled before its first step
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed += 1
            log.error("a connection of %s failed", guest.peer, exc_info=error)


async def accept(
    listening: socket.socket, make_room: Callable[[], None] = lambda: None
) -> tuple[socket.socket, str]:
    """Return the next connection, and its client's address; empty for a unix socket.

    Where the system has no descriptor or memory for one, `make_room` is called, and it is tried
    again after a pause.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            accepted, address = await loop.sock_accept(listening)
        except OSError as error:
            if error.errno in _GONE:
                log.debug("a connection was gone before it was accepted: %s", error)
                continue
            log.warning("cannot accept a connection: %s", error)
            if error.errno in _FULL:
                make_room()
            await asyncio.sleep(_PAUSE)
            continue
        return accepted, plain_address(str(address[0])) if address else ""


def plain_address(address: str) -> str:
    """Return an address of the system's as people write it: IPv4 as that, and without a zone."""
    bare = address.partition("%")[0]
    return bare.removeprefix("::ffff:") if "." in bare else bare


async def listen(host: str, port: int, backlog: int) -> socket.socket:
    """Return a socket that listens on `host` ("": all addresses, IPv6 too). Raises `OSError`."""
    if not host:
        if socket.has_dualstack_ipv6():
            try:
                return socket.create_server(
                    ("", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
                )
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise
        return socket.create_server(("", port), backlog=backlog)
    where = (await resolve(host, port))[0]
    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    return socket.create_server((where, port), family=family, backlog=backlog)
