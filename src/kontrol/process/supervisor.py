"""Keeps one guard process alive: starts it, reads its messages, replaces it when it dies.

When `on_death` is called, the command that the guard owned is gone: the kernel has killed the main
process, and orphans that became our children have been killed and reaped here.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from kontrol_common.processes import exited, kill_orphans

_log = logging.getLogger(__name__)

_SOURCE = Path(__file__).parents[2]  # where `kontrol` and `automaton` are: -I -S finds neither
_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); from kontrol.process.guard_main import main; main()"
)
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")  # all it needs; no secrets
_EXIT_TIMEOUT = 5.0  # seconds for a guard to exit when asked to, and for orphans to die
_YOUNG = 1.0  # seconds: a guard that dies sooner is replaced after a delay
_BACKOFF_MAX = 5.0  # seconds


class GuardSupervisor:
    """One guard process at a time, while `run` runs.

    `on_message` is called with each message of the guard but its first, `on_death` when a guard is
    gone. `known`: see `Guard`.
    """

    def __init__(
        self,
        *,
        known: Callable[[], Collection[int]] | None,
        on_message: Callable[[dict[str, Any]], None],
        on_death: Callable[[], None],
    ) -> None:
        self.ready = asyncio.Event()
        self.failure = "it did not report"
        self._known = known
        self._on_message = on_message
        self._on_death = on_death
        self._closing = asyncio.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The guard process's id; None while there is none."""
        return self._process.pid if self._process else None

    @property
    def closing(self) -> bool:
        """Whether `close` has been called."""
        return self._closing.is_set()

    async def run(self) -> None:
        """Keep a guard process alive until `close`."""
        loop = asyncio.get_running_loop()
        delay = 0.0
        while not self._closing.is_set():
            born = loop.time()
            try:
                await self._live()
            except OSError as error:
                self.failure = f"{type(error).__name__}: {error}"
            if self._closing.is_set():
                return
            delay = min(2 * delay + 0.1, _BACKOFF_MAX) if loop.time() - born < _YOUNG else 0.0
            _log.error(
                "the guard process died: %s; starting another in %.1f s", self.failure, delay
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._closing.wait()

    def close(self) -> None:
        """Have the guard kill its command and exit; kill a guard that does not."""
        self._closing.set()
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_WR)
            loop = asyncio.get_running_loop()
            loop.call_later(
                _EXIT_TIMEOUT, self.kill, "it did not exit when asked to", self._process
            )

    def send(self, message: dict[str, Any], descriptors: Collection[int] = ()) -> None:
        """Send without waiting; a guard that does not accept it is dead or stuck, and is killed."""
        if self._control is None:
            return  # it is gone, and `on_death` has been or will be called
        data = json.dumps(message).encode() + b"\n"
        try:
            sent = socket.send_fds(self._control, [data], list(descriptors))
        except (BlockingIOError, ConnectionError):
            sent = 0
        if sent < len(data):
            self.kill("it does not read messages")

    def kill(self, why: str, only: subprocess.Popen[bytes] | None = None) -> None:
        """Kill the guard process, if there is one (with `only`, if it is that one)."""
        process = self._process
        if process is not None and only in {None, process} and process.poll() is None:
            _log.error("killing the guard process %d: %s", process.pid, why)
            process.kill()

    async def _live(self) -> None:
        """Start one guard process, read its messages until it is gone, and clean up after it."""
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)  # noqa: FBT003  # it takes no keywords
            with theirs:
                process = _start(theirs.fileno())
            self._process, self._control = process, ours
            try:
                await self._listen(ours)
            finally:
                self.ready.clear()
                self._control = None
                await self._clean_up(process)

    async def _listen(self, control: socket.socket) -> None:
        """Read messages until the end, or until one is invalid."""
        loop = asyncio.get_running_loop()
        buffer = b""
        with contextlib.suppress(ConnectionError, ValueError):
            while data := await loop.sock_recv(control, 65536):
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    message = json.loads(line)
                    if "ready" in message:
                        self.ready.set()
                    else:
                        self._on_message(message)

    async def _clean_up(self, process: subprocess.Popen[bytes]) -> None:
        """Kill and await a guard process, and the orphans that it leaves."""
        try:
            process.kill()
            if process.poll() is None:
                await exited(process.pid)
            self.failure = f"it ended with {process.wait()}"
            if self._known is not None and not self.closing:
                await kill_orphans(self._known, _EXIT_TIMEOUT)
        finally:
            self._process = None
            self._on_death()


def _start(control: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _PROGRAM, str(_SOURCE), str(control)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        pass_fds=(control,),
        start_new_session=True,
    )
