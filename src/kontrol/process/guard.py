"""The daemon's side of the guard: a small process, kept warm, that owns a command for us.

Why not a plain child: the daemon may be killed, stopped or stuck, and what it started must then not
go on. So another process owns the command (`kontrol.process.guard_main`), and this one keeps it
alive, asks it to start, extend and end, and drains the pipes. Starting an interpreter takes 20 ms,
so the guard is started before it is needed; the command itself then takes 2 or 3.

The guard can die too: the callback may kill its parent. The kernel then kills the main process;
whatever else it had falls to the daemon, if that is a subreaper (`kontrol_common.processes`), and
is killed here, the run counts as failed with "guard died", and another guard is started.

Invariants: when `run` returns, or raises for the first time, nothing of the command is left (but
what `Outcome.detail` names, and what is stuck in the kernel for longer than `PATIENCE`); its
descriptors are closed; and a guard runs one command at a time.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO, Self

from kontrol.process.command import Command, Drain, Outcome, Reason
from kontrol.process.run import PATIENCE, OnChunk, OnStderr, Run
from kontrol.process.supervisor import GuardSupervisor

_LAST_LOOK = 0.1  # seconds
_READY = 10.0  # seconds for an interpreter to start, on a machine that is very busy


class GuardError(Exception):
    """A guard could not be started, or was asked for more than one command at a time."""


class Guard:
    """Runs commands, one at a time, so that none outlives its deadline or this process.

    `known` returns the ids of all children of this process that somebody awaits, other guards
    included. Without it, orphans that fall to this process when the guard dies are left alone:
    they cannot be told from others' children.
    """

    def __init__(self, *, known: Callable[[], Collection[int]] | None = None) -> None:
        self._keeper = GuardSupervisor(known=known, on_message=self._report, on_death=self._fail)
        self._keeping: asyncio.Task[None] | None = None
        self._run: Run | None = None
        self._runs = 0

    @property
    def pid(self) -> int | None:
        """The guard process's id; None while there is none."""
        return self._keeper.pid

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
        if self._keeping is not None:
            raise GuardError("this guard has been started: start each once")
        self._keeping = asyncio.create_task(self._keeper.run(), name="guard")
        try:
            await self._await_ready()
        finally:
            if not self._keeper.ready.is_set():
                await self.close()
        if self._keeper.closing:
            raise GuardError(
                f"the guard process ({sys.executable}) is not ready after {_READY:g} s: "
                f"{self._keeper.trouble}: see its standard error, and that processes may be started"
            )

    async def close(self) -> None:
        """Kill the command, if one runs, and end the guard process. Can be called again."""
        self._keeper.close()
        if self._keeping is not None:
            await asyncio.wait({self._keeping})
            self._keeping.result()

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

        `on_stderr` is called with each line, within the bounds of `pipes.Lines`; `on_stdout` with
        each chunk, which is then not collected: the next is read when it, or the awaitable that it
        returned, is done; `on_stderr_chunk` is the same for stderr, all of it. Cancellation kills
        the command before it propagates. Raises GuardError if a command runs already, or this
        guard is closed.
        """
        if self._keeping is None or self._keeper.closing:
            raise GuardError("this guard does not run: start it first")
        if self._run is not None:
            raise GuardError("this guard runs a command already: take another for the second")
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
        # Not when this returns: cancelled twice, it does so while the guard still kills.
        run.ended.add_done_callback(self._forget)
        try:
            await self._await_ready(run)
            if self._keeper.ready.is_set() and not run.ended.done():
                await self._conduct(run)
        finally:
            if run.sent_at is None:
                why = f"no guard process: {self._keeper.trouble}"
                run.report({"reason": "not started", "why": why})
        self._run = None
        return run.outcome()

    def extend(self, deadline: float) -> None:
        """Move the running command's deadline (seconds of `boottime`); nothing if none runs."""
        if self._run is not None:
            self._run.deadline = deadline
            self._tell(self._run, {"op": "extend", "deadline": deadline})

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
            self._tell(run, {"op": "end", "reason": reason})
        else:
            run.report({"reason": reason})

    def _tell(self, run: Run, message: dict[str, Any]) -> None:
        """Pass on what changed for a run that the guard has."""
        if run.ended.done() or run.sent_at is None:
            return
        self._keeper.send(message)
        if run.patience is not None and not run.patience.expired():
            run.patience.reschedule(run.latest())

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
        """Wait for a guard process, in bounds, or for the run to be over before it starts."""
        if self._keeper.ready.is_set():
            return
        ready = asyncio.ensure_future(self._keeper.ready.wait())
        events: set[asyncio.Future[Any]] = {ready} if run is None else {ready, run.ended}
        try:
            await asyncio.wait(events, timeout=_READY, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()

    async def _conduct(self, run: Run) -> None:
        """Have the guard start the command, and drain its pipes until the guard's report."""
        with contextlib.ExitStack() as stack:
            out, out_end = _pipe(stack)
            err, err_end = _pipe(stack)
            with _file(run.command.spec()) as spec, _file(run.command.stdin) as stdin:
                run.sent_at = asyncio.get_running_loop().time()
                stdio = [stdin, out_end.fileno(), err_end.fileno()]
                self._keeper.send(run.start_message(), [spec, *stdio])
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
        """Wait for the guard's report; a guard that is late with it is killed."""
        try:
            async with asyncio.timeout_at(run.latest()) as run.patience:
                await asyncio.wait({run.ended})
        except TimeoutError:
            # If we were stopped ourselves, its report is there and has not been read yet.
            _, late = await asyncio.wait({run.ended}, timeout=_LAST_LOOK)
            if late:
                self._keeper.kill("it did not end its command in time")
                await asyncio.wait({run.ended})
        finally:
            run.patience = None

    async def _kill(self, run: Run) -> None:
        """Have the guard kill the command at once; if it does not, kill the guard."""
        self._keeper.send({"op": "kill", "reason": "stopped"})
        _, late = await asyncio.wait({run.ended}, timeout=PATIENCE)
        if late:
            self._keeper.kill("it did not kill its command")
            await asyncio.wait({run.ended})


def _pipe(stack: contextlib.ExitStack) -> tuple[int, BinaryIO]:
    """Return a pipe's reading descriptor and its writing end, which is to be closed early."""
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    return reader, stack.enter_context(os.fdopen(writer, "wb", 0))


@contextlib.contextmanager
def _file(content: bytes) -> Iterator[int]:
    """Give a descriptor of an unnamed file with this content, to be read from its start.

    A file, in memory where that exists, takes any size at once: a pipe would want a writer.
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
