"""The daemon's side of the guard: a small process, kept warm, that owns a command for us.

Why not a plain child: the daemon may be killed, stopped or stuck, and its command must then not
continue. So another process owns the command (`kontrol.process.guard_main`). The daemon keeps that
process alive, asks it to start, extend and end commands, and drains the pipes. Starting an
interpreter takes 20 ms, so the guard is started before it is needed; a command then starts within 2
or 3 ms.

The guard can die too: the callback may kill its parent. The kernel then kills the main process. The
other processes become children of the daemon, if it is a subreaper (`kontrol_common.processes`),
and are killed here; the run fails with "guard died", and another guard is started.

Invariants: when `run` returns, or raises for the first time, no process of the command is left
(except those that `Outcome.detail` names, and those stuck in the kernel for longer than
`REPORT_TIMEOUT`); its descriptors are closed; and a guard runs one command at a time.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO, Self

from kontrol.process.command import Command, Drain, Outcome, Reason
from kontrol.process.run import REPORT_TIMEOUT, OnChunk, OnStderr, Run
from kontrol.process.supervisor import GuardSupervisor

_LAST_LOOK = 0.1  # seconds
_READY = 10.0  # seconds for an interpreter to start, on a machine that is very busy


class GuardError(Exception):
    """A guard could not be started, or was asked to run a second command at the same time."""


class Guard:
    """Runs commands, one at a time, so that none outlives its deadline or this process.

    `known` returns the ids of all children of this process that are awaited elsewhere, other guards
    included. Without it, orphans that this process gets when the guard dies are left alone: they
    cannot be distinguished from other children.
    """

    def __init__(self, *, known: Callable[[], Collection[int]] | None = None) -> None:
        self._supervisor = GuardSupervisor(
            known=known, on_message=self._report, on_death=self._fail
        )
        self._supervising: asyncio.Task[None] | None = None
        self._run: Run | None = None
        self._runs = 0

    @property
    def pid(self) -> int | None:
        """The guard process's id; None while there is none."""
        return self._supervisor.pid

    @property
    def busy(self) -> bool:
        """Whether a command runs, or is still being killed."""
        return self._run is not None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the guard process and wait until it is ready. Raises GuardError if it cannot."""
        if self._supervising is not None:
            raise GuardError("this guard was started before: start each guard once")
        self._supervising = asyncio.create_task(self._supervisor.run(), name="guard")
        try:
            await self._await_ready()
        finally:
            if not self._supervisor.ready.is_set():
                await self.close()
        if self._supervisor.closing:
            raise GuardError(
                f"the guard process ({sys.executable}) is not ready after {_READY:g} s: "
                f"{self._supervisor.failure}: see its standard error, and the limit of processes"
            )

    async def close(self) -> None:
        """Kill the command, if one runs, and end the guard process. Can be called again."""
        self._supervisor.close()
        if self._supervising is not None:
            await asyncio.wait({self._supervising})
            self._supervising.result()

    async def run(
        self,
        command: Command,
        *,
        deadline: float | None,
        on_stderr: OnStderr | None = None,
        on_stdout: OnChunk | None = None,
        on_stderr_chunk: OnChunk | None = None,
    ) -> Outcome:
        """Run the command to its end, or until `deadline` (seconds of `boottime`), and report.

        `on_stderr` is called with each line, within the bounds of `Lines`. `on_stdout` is called
        with each chunk, which is then not collected; the next one is read when the call, or the
        awaitable that it returned, is done. `on_stderr_chunk` is the same for stderr, without
        bounds. Cancellation kills the command before it propagates. Raises GuardError if a command
        is running, or if this guard is closed.
        """
        if self._supervising is None or self._supervisor.closing:
            raise GuardError("this guard is not running: start it first")
        if self._run is not None:
            raise GuardError("this guard is running a command: use another guard for the second")
        self._runs += 1
        run = self._run = Run(
            self._runs,
            command,
            deadline,
            on_stderr=on_stderr,
            on_stdout=on_stdout,
            on_stderr_chunk=on_stderr_chunk,
            over_limit=lambda: self._end("too much output"),
        )
        # Not when this returns: cancelled twice, it returns while the guard is still killing.
        run.ended.add_done_callback(self._forget)
        try:
            await self._await_ready(run)
            if self._supervisor.ready.is_set() and not run.ended.done():
                await self._conduct(run)
        finally:
            if run.sent_at is None:
                why = f"no guard process: {self._supervisor.failure}"
                run.report({"reason": "not started", "why": why})
        self._run = None
        return run.outcome()

    def extend(self, deadline: float) -> None:
        """Move the running command's deadline (seconds of `boottime`), if one is running."""
        if self._run is not None:
            self._run.deadline = deadline
            self._notify(self._run, {"op": "extend", "deadline": deadline})

    async def stop(self) -> None:
        """End the running command: SIGTERM, its grace, SIGKILL; returns when it is gone."""
        run = self._run
        if run is not None:
            self._end("stopped")
            await asyncio.wait({run.ended})

    def _end(self, reason: Reason) -> None:
        run = self._run
        if run is None or run.stop_at is not None:
            return
        run.stop_at = asyncio.get_running_loop().time()
        if run.sent_at is not None:
            self._notify(run, {"op": "end", "reason": reason})
        else:
            run.report({"reason": reason})

    def _notify(self, run: Run, message: dict[str, Any]) -> None:
        """Send a change to the guard, if it has the run."""
        if run.ended.done() or run.sent_at is None:
            return
        self._supervisor.send(message)
        if run.report_timeout is not None and not run.report_timeout.expired():
            run.report_timeout.reschedule(run.latest())

    def _report(self, message: dict[str, Any]) -> None:
        if self._run is not None and self._run.number == message["run"]:
            self._run.report(message)

    def _fail(self) -> None:
        if self._run is not None and self._run.sent_at is not None:
            self._run.guard_died()

    def _forget(self, ended: asyncio.Future[Any]) -> None:
        if self._run is not None and self._run.ended is ended:
            self._run = None

    async def _await_ready(self, run: Run | None = None) -> None:
        """Wait, for a limited time, for a guard process, or for the run to end before it starts."""
        if self._supervisor.ready.is_set():
            return
        ready = asyncio.ensure_future(self._supervisor.ready.wait())
        events: set[asyncio.Future[Any]] = {ready} if run is None else {ready, run.ended}
        try:
            await asyncio.wait(events, timeout=_READY, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()

    async def _conduct(self, run: Run) -> None:
        """Have the guard start the command; drain its pipes until the guard reports."""
        with contextlib.ExitStack() as stack:
            out, out_end = _pipe(stack)
            err, err_end = _pipe(stack)
            with _file(run.command.spec()) as spec, _file(run.command.stdin) as stdin:
                run.sent_at = asyncio.get_running_loop().time()
                stdio = [stdin, out_end.fileno(), err_end.fileno()]
                self._supervisor.send(run.start_message(), [spec, *stdio])
            out_end.close()
            err_end.close()
            drains = Drain(out, run.take_stdout), Drain(err, run.take_stderr)
            try:
                async with asyncio.TaskGroup() as tasks:
                    for drain in drains:
                        tasks.create_task(drain.run())
                    await self._await_end(run)
                    for drain in drains:
                        drain.finish()
            finally:
                if not run.ended.done():
                    await self._kill(run)
        run.finish_stderr()

    async def _await_end(self, run: Run) -> None:
        """Wait for the guard's report; kill a guard that is late with it."""
        try:
            async with asyncio.timeout_at(run.latest()) as run.report_timeout:
                await asyncio.wait({run.ended})
        except TimeoutError:
            # If this process was stopped, the report may be there and not read yet.
            _, late = await asyncio.wait({run.ended}, timeout=_LAST_LOOK)
            if late:
                self._supervisor.kill("it did not end its command in time")
                await asyncio.wait({run.ended})
        finally:
            run.report_timeout = None

    async def _kill(self, run: Run) -> None:
        """Have the guard kill the command immediately; if it does not, kill the guard."""
        self._supervisor.send({"op": "kill", "reason": "stopped"})
        _, late = await asyncio.wait({run.ended}, timeout=REPORT_TIMEOUT)
        if late:
            self._supervisor.kill("it did not kill its command")
            await asyncio.wait({run.ended})


def _pipe(stack: contextlib.ExitStack) -> tuple[int, BinaryIO]:
    """Return the reading descriptor of a pipe, and its writing end, to be closed early."""
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    return reader, stack.enter_context(os.fdopen(writer, "wb", 0))


@contextlib.contextmanager
def _file(content: bytes) -> Iterator[int]:
    """Yield a descriptor of an unnamed file with this content, at its start.

    A file, in memory where possible, holds any size; a pipe would need a task that writes.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("kontrol")
    else:
        import tempfile  # with all that it imports, half a megabyte that Linux does not need

        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)
