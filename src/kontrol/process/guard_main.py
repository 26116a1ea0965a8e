"""The guard process: it owns one command at a time, and outlives the daemon to end it.

The daemon can be stopped, killed, or stuck, and its command must not continue after that. So this
process, which the daemon keeps running and controls over a socket, starts the command, holds its
deadline, and is a child subreaper: every process that the command starts, whatever it does, stays
below this one. All of them are killed when the deadline passes, when the daemon asks for it, when
the main process has exited, and when the socket closes, as it does when the daemon dies.

A report is sent to the daemon only when nothing is left, neither a process nor a zombie. That is
exact, since a subreaper without children has no descendants.

Messages are lines of JSON. From the daemon: `{"op": "start", "run", "deadline", "timeout", "grace",
"scratch"}`, with four descriptors beside it (specification, stdin, stdout, stderr), `{"op":
"extend", "deadline"}`, `{"op": "end", "reason"}`, `{"op": "kill", "reason"}`. To the daemon:
`{"ready": pid}` once, then for each start `{"run", "reason", "status", "signal", "error", "left"}`.

It is synchronous, with one thread and few imports (11 MB resident; 35 MB with asyncio). Everything
that it waits for is a descriptor in one `poll`, so it uses no processor time while nothing happens.
"""

import array
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys

from kontrol.process.clock import BootTimer, boottime
from kontrol.process.kill_schedule import KillSchedule
from kontrol.process.spawn import close_all, failure, read_all, spawn
from kontrol_common.processes import (
    ENDING_SIGNALS,
    STRAY_SIGNALS,
    become_subreaper,
    children,
    kill_descendants,
)

TYPE_CHECKING = False  # the guard does without typing, which costs 0.8 MB
if TYPE_CHECKING:
    from typing import Any

_DESCRIPTORS = 4
_CLOSE_ON_EXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # 0 where there is no such flag
# The daemon says when to end; its end must not end this process before the command is gone.
_IGNORED = (*ENDING_SIGNALS, *STRAY_SIGNALS, signal.SIGPIPE)


class _Owned:
    """The command that the guard owns."""

    def __init__(
        self, message: "dict[str, Any]", schedule: KillSchedule, spawned: tuple[int, int]
    ) -> None:
        self.run: int = message["run"]
        self.scratch: str | None = message["scratch"]  # the folder to remove if the daemon cannot
        self.schedule = schedule
        self.pid, self.failure = spawned
        self.status: int | None = None  # of the main process, as `waitpid` returns it


class Program:
    """The guard's loop: `serve` runs until the daemon is gone."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._connected = True
        self._buffer = b""
        self._descriptors: list[int] = []
        self._owned: _Owned | None = None
        self._timer = BootTimer()

    def serve(self) -> None:
        """Own commands until the daemon is gone and no process of the last one is left."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        wakeup = _wake_on_child_exit()
        poll.register(wakeup, select.POLLIN)
        if self._timer.fd is not None:
            poll.register(self._timer.fd, select.POLLIN)
        self._send({"ready": os.getpid()})
        while self._connected or self._owned:
            self._timer.arm(self._owned.schedule.wake if self._owned else None)
            ready = {fd for fd, _ in poll.poll(self._timer.remaining())}
            if wakeup in ready:
                os.read(wakeup, 4096)
            # Messages come first: an extension may have been waiting for a while.
            if self._control.fileno() in ready:
                self._receive()
                if not self._connected:
                    poll.unregister(self._control)
            if self._owned:
                self._attend(self._owned)

    def _receive(self) -> None:
        try:
            data, ancillary, _, _ = self._control.recvmsg(
                65536, socket.CMSG_SPACE(_DESCRIPTORS * 4), _CLOSE_ON_EXEC
            )
        except ConnectionError:
            data, ancillary = b"", []
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors = array.array("i")
                descriptors.frombytes(content)
                if not _CLOSE_ON_EXEC:
                    for fd in descriptors:
                        os.set_inheritable(fd, False)  # noqa: FBT003  # it takes no keywords
                self._descriptors.extend(descriptors)
        if not data:
            self._connected = False
            if self._owned:
                self._owned.schedule.kill("stopped")
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, message: "dict[str, Any]") -> None:
        owned = self._owned
        if message["op"] == "start":
            self._start(message)
        elif owned is None:
            return  # it ended while the message was under way
        elif message["op"] == "extend":
            owned.schedule.extend(message["deadline"])
        elif message["op"] == "end":
            owned.schedule.end(message["reason"], boottime())
        elif message["op"] == "kill":
            owned.schedule.kill(message["reason"])

    def _start(self, message: "dict[str, Any]") -> None:
        spec, *stdio = self._descriptors
        self._descriptors = []
        content = read_all(spec)
        now, deadline = boottime(), message["deadline"]
        late = deadline is not None and now >= deadline
        spawned, error = None, None
        try:
            spawned = None if late else spawn(content, stdio)
        except OSError as failed:  # no more processes, memory or descriptors
            error = {"errno": failed.errno, "path": "", "stage": "start"}
        finally:
            close_all(stdio)
        if spawned is None:
            self._report(message["run"], "fenced" if late else "not started", error=error)
            return
        expiry = None if message["timeout"] is None else now + message["timeout"]
        schedule = KillSchedule(deadline=deadline, expiry=expiry, grace=message["grace"])
        self._owned = _Owned(message, schedule, spawned)

    def _attend(self, owned: _Owned) -> None:
        """Reap, send the signal that is due, and report once nothing is left."""
        nothing_left = self._reap(owned)
        left: list[int] = []
        due = None if nothing_left else owned.schedule.due(boottime())
        if due is not None and not kill_descendants(os.getpid(), due) and due == signal.SIGKILL:
            left = _not_permitted()
        if nothing_left or (left and owned.status is not None):
            self._over(owned, left)

    def _reap(self, owned: _Owned) -> bool:
        """Reap all children that have exited; return whether none is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == owned.pid:
                owned.status = status
                owned.schedule.main_exited()

    def _over(self, owned: _Owned, left: list[int]) -> None:
        self._owned = None
        error = failure(owned.failure)
        status = owned.status or 0
        if not self._connected and owned.scratch is not None:
            import shutil  # needed only when the daemon is gone

            shutil.rmtree(owned.scratch, ignore_errors=True)
        if error is not None:
            reason = "refused" if error["stage"] == "check" else "not started"
            self._report(owned.run, reason, error=error)
        elif os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            reason = owned.schedule.reason or "signalled"
            self._report(owned.run, reason, signal=number, left=left)
        else:
            number = os.WEXITSTATUS(status)
            self._report(owned.run, owned.schedule.reason or "exited", status=number, left=left)

    def _report(self, run: int, reason: str, **more: object) -> None:
        self._send({"run": run, "reason": reason, **more})

    def _send(self, message: dict[str, object]) -> None:
        with contextlib.suppress(ConnectionError):  # the daemon is gone: `_receive` will find out
            self._control.sendall(json.dumps(message).encode() + b"\n")


def _not_permitted() -> list[int]:
    """Return our children, if all of them live and are of users that we may not signal."""
    ours = children(os.getpid())
    for pid in ours:
        try:
            os.kill(pid, 0)
        except PermissionError:
            continue
        except ProcessLookupError:
            return []
        return []
    return ours


def _wake_on_child_exit() -> int:
    """Return a descriptor that becomes readable when a child exits."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return reader


def main() -> None:
    """Run with the control socket's descriptor as the last argument."""
    become_subreaper()
    for number in signal.valid_signals():  # a background job of a shell inherits ignored signals
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # a collection in a child would copy every page that it touches
    with socket.socket(fileno=int(sys.argv[-1])) as control:
        control.set_inheritable(False)  # it takes no keywords
        Program(control).serve()
