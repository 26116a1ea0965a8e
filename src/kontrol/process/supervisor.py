"""Keep one guard process alive: start it, listen to it, replace it when it dies.

The command that it owned when it died is gone by the time that `on_death` is called: the kernel
killed the main process, and orphans that fell to us have been killed and reaped here.
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
_PATIENCE = 5.0  # seconds for a guard to exit when asked to, and for orphans to die
_YOUNG = 1.0  # seconds: a guard that dies younger than this is not replaced at once
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
        self.trouble = "it gave no sign of life"
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
                self.trouble = f"{type(error).__name__}: {error}"
            if self._closing.is_set():
                return
            delay = min(2 * delay + 0.1, _BACKOFF_MAX) if loop.time() - born < _YOUNG else 0.0
            _log.error("the guard process is gone: %s; another in %.1f s", self.trouble, delay)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._closing.wait()

    def close(self) -> None:
        """Have the guard kill what it owns and exit; one that does not is killed."""
        self._closing.set()
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_WR)
            loop = asyncio.get_running_loop()
            loop.call_later(_PATIENCE, self.kill, "it did not exit when asked to", self._process)

    def send(self, message: dict[str, Any], descriptors: Collection[int] = ()) -> None:
        """Send at once; a guard that does not take it is dead or stuck, and is killed."""
        if self._control is None:
            return  # it is gone, and `on_death` has been or will be called
        data = json.dumps(message).encode() + b"\n"
        try:
            sent = socket.send_fds(self._control, [data], list(descriptors))
        except (BlockingIOError, ConnectionError):
            sent = 0
        if sent < len(data):
            self.kill("it takes no messages")

    def kill(self, why: str, only: subprocess.Popen[bytes] | None = None) -> None:
        """Kill the guard process, if there is one (and if it is that one); it is then replaced."""
        process = self._process
        if process is not None and only in {None, process} and process.poll() is None:
            _log.error("killing the guard process %d: %s", process.pid, why)
            process.kill()

    async def _live(self) -> None:
        """Start one guard process, listen to it until it is gone, and clean up after it."""
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
                await self._bury(process)

    async def _listen(self, control: socket.socket) -> None:
        """Take messages until their end, or until they make no sense."""
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

    async def _bury(self, process: subprocess.Popen[bytes]) -> None:
        """See a guard process end, and all that it leaves."""
        try:
            process.kill()
            if process.poll() is None:
                await exited(process.pid)
            self.trouble = f"it ended with {process.wait()}"
            if self._known is not None and not self.closing:
                await kill_orphans(self._known, _PATIENCE)
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
