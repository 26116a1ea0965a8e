"""Reports the daemon's state to systemd, by sd_notify(3); does nothing without systemd.

The daemon is *ready* when it does its work: every tier has acknowledged the agent, the master's
mirror of etcd is complete. An outage elsewhere must not delay the boot of a host, or get a healthy
process killed and restarted: so it is reported after `LATEST` seconds at the latest, and the status
line says what is missing. The *watchdog* is fed by the event loop: systemd kills and restarts a
process whose loop is stuck.

There is no library for it, since it is one datagram to a socket that the environment names; the one
on PyPI had its last release in 2017 (docs/decisions/0107).
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Mapping, MutableMapping
from typing import Never, Self

from kontrol.ensemble.numbers import whole

log = logging.getLogger(__name__)

LATEST = 30.0
"""Seconds after which a daemon under systemd counts as started, whether or not it is ready."""

_SOCKET, _MICROSECONDS, _PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"


class Notifier:
    """Sends to the socket at `path`, None for nowhere; feeds a watchdog of `watchdog` seconds."""

    def __init__(self, path: str | None, watchdog: float | None = None) -> None:
        self._path = path
        self._watchdog = watchdog

    @classmethod
    def take(cls, environ: MutableMapping[str, str]) -> Self:
        """Read systemd's variables, and remove them from `environ`: children must not use them."""
        path, microseconds, pid = (environ.pop(name, "") for name in (_SOCKET, _MICROSECONDS, _PID))
        if not path.startswith(("/", "@")):  # another kind of socket, which only systemd 255 has
            return cls(None)
        watchdog = None
        with contextlib.suppress(ValueError):
            if not pid or whole(pid, 1, 2**31) == os.getpid():
                watchdog = whole(microseconds, 1, 2**53) / 1e6
        return cls(path, watchdog)

    def send(self, *assignments: str) -> None:
        """Send assignments, as `READY=1`. What cannot be sent is dropped, with a debug line."""
        if self._path is None:
            return
        address = f"\0{self._path[1:]}" if self._path.startswith("@") else self._path
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # noqa: FBT003  # it takes no keywords
            try:
                sock.sendto("\n".join(assignments).encode("utf-8"), address)
            except OSError as error:
                log.debug("not sent to systemd: %s: %s", assignments[0], error)

    async def run(self, waits: Mapping[str, asyncio.Event]) -> None:
        """Report that the daemon is ready once all of `waits` (by name) are set; feed the watchdog.

        Returns when there is nothing more to report.
        """
        if self._path is None:
            return
        async with asyncio.TaskGroup() as group:
            if self._watchdog is not None:
                group.create_task(self._feed(self._watchdog))
            self.send(f"STATUS=waiting for {_missing(waits)}")
            try:
                async with asyncio.timeout(LATEST):
                    await self._await_all(waits)
            except TimeoutError:
                missing = _missing(waits)
                log.warning("started, but not ready after %g s: waiting for %s", LATEST, missing)
                self.send("READY=1", f"STATUS=started, waiting for {missing}")
                await self._await_all(waits)
                self.send("STATUS=ready")
            else:
                self.send("READY=1", "STATUS=ready")

    async def _await_all(self, waits: Mapping[str, asyncio.Event]) -> None:
        for event in waits.values():
            await event.wait()

    async def _feed(self, watchdog: float) -> Never:
        while True:
            self.send("WATCHDOG=1")
            await asyncio.sleep(watchdog / 3)

    def ending(self) -> None:
        """Report that the daemon is ending."""
        self.send("STOPPING=1", "STATUS=ending")


def _missing(waits: Mapping[str, asyncio.Event]) -> str:
    return ", ".join(name for name, event in waits.items() if not event.is_set())
