"""The connections of a server: accepted, bounded, and closed.

A peer is known by its connection: it has an address and a number of our own, whatever the peer
calls itself. Which connections end when there are too many is decided in `roster.py`.

Invariant: every accepted socket belongs to one `Peer` in the roster, or is closed.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Never

from kontrol.listener import BindError, accept
from kontrol.ratelimit import LogLimiter
from kontrol.rpc.limits import Limits
from kontrol.rpc.roster import Roster
from kontrol.rpc.sockets import affordable, given_up, listening
from kontrol.rpc.transport import Link
from kontrol.rpc.zmtp.machine import SERVER, Machine
from kontrol.rpc.zmtp.mechanism import Mechanism

_log = logging.getLogger(__name__)

_BUFFER = 64 * 1024
"""Bytes read from a connection in one turn of the loop."""

_BATCH = 16
"""Connections accepted in one turn of the loop: those that are there come first when it has much to
do."""

_LAST_WORDS = 0.5
"""Seconds after the end of a server in which its peers may take in what was sent before it."""


class Peer(Link):
    """A connection to the server. `public` is its proved key, if keys are used.

    `calls` is the number of calls in progress.
    """

    __slots__ = (
        *("_had", "_peers", "address", "calls", "heard", "met", "number", "public"),
        "revoked",
    )

    def __init__(self, peers: "Peers", address: str, number: int, now: float) -> None:
        self.address = address
        self.number = number
        self.heard = now
        self.met = False
        self.public = ""
        self.revoked = False
        """Whether its key is not accepted any more; then the connection is about to end."""
        self.calls = 0
        self._peers = peers
        self._had = 0
        machine = Machine(SERVER, peers.mechanism(self), peers.limits, now)
        super().__init__(machine, peers.limits, peers.loop, peers.buffer)

    @property
    def name(self) -> str:
        """The name of the connection: its IP address, and its number in hex."""
        return f"{self.address}#{self.number:x}"

    @property
    def busy(self) -> bool:
        """Whether calls are in progress."""
        return self.calls > 0

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        self.heard = self._loop.time()
        super().buffer_updated(nbytes)

    def _met(self, metadata: Mapping[bytes, bytes]) -> None:  # noqa: ARG002 - nothing else counts
        self.met = True
        self._peers.roster.met(self)

    def _received(self, parts: list[bytes]) -> None:
        self._peers.receive(self, parts)

    def _held(self) -> None:
        held = self.machine.held
        if held != self._had:
            self._peers.held(self, held - self._had, held)
            self._had = held

    def _over(self, reason: str, error: Exception | None) -> None:
        self._held()
        self._peers.over(self, reason, error)

    def _gone(self) -> None:
        self._peers.gone(self)


class Peers:
    """The connections to one listening socket. `bind`, then `serve`.

    `mechanism` returns that of a new connection. `receive` is called with each message, `ended`
    when a connection is over, with its reason, and an error unless it was closed here.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        mechanism: Callable[[Peer], Mechanism],
        receive: Callable[[Peer, list[bytes]], None],
        ended: Callable[[Peer, str, Exception | None], None],
    ) -> None:
        self.limits = limits
        self.mechanism = mechanism
        self.receive = receive
        self.loop = asyncio.get_running_loop()
        self.buffer = memoryview(bytearray(_BUFFER))
        self.roster: Roster[Peer] = Roster(
            replace(limits, connections=affordable(limits.connections))
        )
        self._ended = ended
        self._warnings = LogLimiter(1, 60.0)
        self._made = 0
        self._open: set[Peer] = set()  # those whose socket is not closed yet
        self._unfinished: dict[Peer, int] = {}
        self._bytes = 0
        self._tasks: set[asyncio.Task[object]] = set()
        self._socket: socket.socket | None = None
        self._all_gone: asyncio.Future[None] | None = None

    async def bind(self, host: str, port: int) -> int:
        """Listen and return the port. Raises `BindError`."""
        self._socket = await listening(host, port, self.limits)
        bound: int = self._socket.getsockname()[1]
        return bound

    async def serve(self) -> Never:
        """Accept connections, until cancelled."""
        if self._socket is None:
            raise BindError("serve() was called before bind()")
        while True:
            for _ in range(_BATCH):
                accepted, address = await accept(self._socket, self._make_room)
                if given_up(accepted):
                    accepted.close()
                else:
                    self._admit(accepted, address)
            await asyncio.sleep(0)  # `accept` does not wait while connections are there

    def close(self) -> None:
        """Listen no more, and begin to close the connections."""
        if self._socket is not None and self._socket.fileno() >= 0:
            self.loop.remove_reader(self._socket)  # else it would accept on what is closed
            self._socket.close()
        for task in self._tasks:
            task.cancel()
        for peer in tuple(self.roster):
            peer.close("the server has ended")

    async def closed(self) -> None:
        """Wait until the connections are closed, which takes a moment and is bounded."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._open:
            self._all_gone = self.loop.create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    await self._all_gone
        for peer in self._open:
            peer.abort()

    # What peers do.

    def held(self, peer: Peer, more: int, held: int) -> None:
        """Count the bytes of incomplete messages."""
        self._bytes += more
        if held:
            self._unfinished[peer] = held
        else:
            self._unfinished.pop(peer, None)
        if self._bytes > self.limits.unfinished:
            most = max(self._unfinished, key=self._unfinished.__getitem__)
            reason = f"{self._unfinished[most]} bytes of an incomplete message, the most of all"
            self.loop.call_soon(self._end, most, reason)

    def over(self, peer: Peer, reason: str, error: Exception | None) -> None:
        """Forget a connection that is over."""
        self.roster.remove(peer)
        self._ended(peer, reason, error)

    def gone(self, peer: Peer) -> None:
        """Note that a socket is closed."""
        self._open.discard(peer)
        if not self._open and self._all_gone is not None and not self._all_gone.done():
            self._all_gone.set_result(None)

    def _end(self, peer: Peer, reason: str) -> None:
        peer.close(reason, tell=reason.encode())

    # Accepting.

    def _admit(self, accepted: socket.socket, address: str) -> None:
        self._made += 1
        peer = Peer(self, address, self._made, self.loop.time())
        gone = self.roster.admit(peer)
        if gone is None:
            self._warn(f"refused one of {address}, since all others have calls in progress")
            accepted.close()
            return
        self._evict(gone)
        task = self.loop.create_task(self._open_up(peer, accepted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open_up(self, peer: Peer, accepted: socket.socket) -> None:
        try:
            self._open.add(peer)
            await self.loop.connect_accepted_socket(lambda: peer, accepted)
        except (OSError, asyncio.CancelledError) as error:  # the peer or the server is gone already
            accepted.close()
            peer.connection_lost(None)
            if isinstance(error, asyncio.CancelledError):
                raise

    def _make_room(self) -> None:
        self._evict(self.roster.make_room())

    def _evict(self, gone: list[Peer]) -> None:
        for peer in gone:
            self._warn(f"closed the one that had said nothing for longest, {peer.name}")
            peer.close("too many connections", tell=b"too many connections")

    def _warn(self, what: str) -> None:
        held = self._warnings.admit(self.loop.time())
        if held is not None:
            more = f" ({held} more before)" if held else ""
            _log.warning("too many connections, %d: %s%s", len(self.roster), what, more)
