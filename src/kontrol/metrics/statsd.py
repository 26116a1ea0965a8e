"""The original's four counters, sent to a statsd server as it sent them.

Each event is one datagram, `name,tier=kontrol:1|c`: telegraf's form, with the tag in the name. It
is a courtesy, so it never gets in the way: a datagram that cannot be sent at once is dropped. The
server's name is looked up again at times, since what is behind it moves.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Never

log = logging.getLogger(__name__)

NAMES = ("keepalive_emitted", "callback_invoked", "lock_obtained", "md5_changed")

_EARLY = 64  # events that wait for the first look-up
_AGAIN = 60.0  # seconds between look-ups
_PATIENCE = 10.0  # seconds for one

Resolve = Callable[[str, int], Awaitable[list[str]]]


class Statsd:
    """Sends counters to a server while `run` runs. `resolve` looks its name up off the loop."""

    def __init__(self, host: str, port: int, *, resolve: Resolve) -> None:
        self._host = host
        self._port = port
        self._resolve = resolve
        self._early: deque[str] = deque(maxlen=_EARLY)
        self._address = ""
        self._socket: socket.socket | None = None
        self._wrong = ""

    def count(self, name: str) -> None:
        """Count one event, a name of `NAMES`. Never blocks, never raises."""
        if self._socket is None:
            self._early.append(name)
        else:
            self._send(self._socket, name)

    async def run(self) -> Never:
        """Keep the server's address up to date, until cancelled."""
        try:
            while True:
                await self._look_up()
                await asyncio.sleep(_AGAIN)
        finally:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    async def _look_up(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                addresses = await self._resolve(self._host, self._port)
            if not addresses:
                raise OSError("the look-up found no address")
            if self._address not in addresses:
                self._open(addresses[0])
        except OSError as error:  # a time-out is one
            self._complain(str(error) or "its name was not found in time")

    def _open(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        fresh = socket.socket(family, socket.SOCK_DGRAM)
        try:
            fresh.setblocking(False)  # noqa: FBT003 - the standard library's signature
            fresh.connect((address, self._port))
        except OSError:
            fresh.close()
            raise
        if self._socket is not None:
            self._socket.close()
        self._socket, self._address, self._wrong = fresh, address, ""
        while self._early:
            self._send(fresh, self._early.popleft())

    def _send(self, opened: socket.socket, name: str) -> None:
        try:
            opened.send(f"{name},tier=kontrol:1|c".encode("ascii"))
        except BlockingIOError:
            pass
        except OSError as error:  # nobody listens there, as an earlier datagram was told
            self._complain(str(error))

    def _complain(self, why: str) -> None:
        """Log what is wrong, once until it is another thing, or another address is found."""
        if why != self._wrong:
            self._wrong = why
            log.warning(
                "KONTROL_STATSD: %s port %d gets no counters: %s", self._host, self._port, why
            )
