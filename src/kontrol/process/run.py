"""One command under way, as the daemon sees it: what it wrote, when it must be over, how it ended.

`kontrol.process.guard` feeds it with what it reads, and asks it for the outcome.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from kontrol.process.clock import boottime
from kontrol.process.command import Command, Lines, Outcome, Reason, Tail, explain

PATIENCE = 5.0  # seconds beyond the latest that a guard that works needs to end a command
FENCE_PATIENCE = 0.5  # the same beyond the deadline: others may act soon after that

GUARD_DIED: Mapping[str, Any] = {"reason": "guard died"}

OnStderr = Callable[[str], None]
OnChunk = Callable[[bytes], Awaitable[None] | None]


class Run:
    """A command from the request to the guard's report, `ended`.

    `over_limit` is called once, when it has written more than it may.
    """

    def __init__(
        self,
        number: int,
        command: Command,
        deadline: float | None,
        *,
        on_stderr: OnStderr | None,
        on_stdout: OnChunk | None,
        on_stderr_chunk: OnChunk | None = None,
        over_limit: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.number = number
        self.command = command
        self.deadline = deadline  # seconds of `boottime`
        self.sent_at: float | None = None  # loop time at which the guard got it
        self.stop_at: float | None = None  # loop time of the first request to end
        self.ended: asyncio.Future[Mapping[str, Any]] = self._loop.create_future()
        self.patience: asyncio.Timeout | None = None  # while the report is awaited
        self._on_stderr = on_stderr
        self._on_stdout = on_stdout
        self._on_stderr_chunk = on_stderr_chunk
        self._over_limit = over_limit
        self._begun = self._loop.time()
        self._stdout = bytearray()
        self._written = 0  # to stdout
        self._lines = Lines()
        self._tail = Tail(command.stderr_tail)

    def take_stdout(self, chunk: bytes) -> Awaitable[None] | None:
        """Collect or pass on what it wrote; once it wrote too much, drop the rest."""
        before, limit = self._written, self.command.stdout_limit
        self._written += len(chunk)
        if self._written > limit:
            if before <= limit:
                self._over_limit()
            return None
        if self._on_stdout is not None:
            return self._on_stdout(chunk)
        self._stdout += chunk
        return None

    def take_stderr(self, chunk: bytes) -> Awaitable[None] | None:
        """Keep the tail, and pass lines on, or all of it as it came."""
        self._tail.add(chunk)
        if self._on_stderr is not None:
            for line in self._lines.feed(chunk, self._loop.time()):
                self._on_stderr(line)
        return None if self._on_stderr_chunk is None else self._on_stderr_chunk(chunk)

    def finish_stderr(self) -> None:
        """Pass on a last line without its end."""
        if self._on_stderr is not None:
            for line in self._lines.end():
                self._on_stderr(line)

    def start_message(self) -> dict[str, Any]:
        """Return what the guard is told to start it."""
        return {
            "op": "start",
            "run": self.number,
            "deadline": self.deadline,
            "timeout": self.command.timeout,
            "grace": self.command.grace,
            "scratch": self.command.scratch,
        }

    def latest(self) -> float | None:
        """Return the loop time by which a guard that works has reported; None: no bound."""
        most = self.command.grace + PATIENCE
        times = []
        if self.deadline is not None:
            deadline = self._loop.time() + self.deadline - boottime()
            times.append(max(self.sent_at or 0.0, deadline) + FENCE_PATIENCE)
        if self.command.timeout is not None:
            times.append(self._begun + self.command.timeout + most)
        if self.stop_at is not None:
            times.append(self.stop_at + most)
        return min(times, default=None)

    def report(self, message: Mapping[str, Any]) -> None:
        """Note the guard's report, or what stands for it; the first counts."""
        if not self.ended.done():
            self.ended.set_result(message)

    def guard_died(self) -> None:
        """Note that the guard is gone, and the command with it."""
        late = self.deadline is not None and boottime() >= self.deadline
        self.report({"reason": "fenced", "signal": signal.SIGKILL} if late else GUARD_DIED)

    def outcome(self) -> Outcome:
        """Return how it ended; the report must be there."""
        report = self.ended.result()
        reason: Reason = report["reason"]
        if reason == "exited" and self._written > self.command.stdout_limit:
            reason = "too much output"  # the last of it was read after its end
        return Outcome(
            reason=reason,
            status=report.get("status"),
            signal=report.get("signal"),
            stdout=bytes(self._stdout),
            stderr_tail=bytes(self._tail),
            seconds=self._loop.time() - self._begun,
            detail=_describe(self.command, reason, report),
        )


def _describe(command: Command, reason: Reason, report: Mapping[str, Any]) -> str:
    """Return one line for people on how a command ended."""
    status, number = report.get("status"), report.get("signal")
    match reason:
        case "exited":
            text = f"exit status {status}"
        case "signalled":
            text = f"ended by {_signal_name(number)}"
        case "timeout":
            text = f"timed out after {command.timeout:g} s"
        case "too much output":
            text = f"wrote more than {command.stdout_limit} bytes to standard output"
        case "fenced" if status is None and number is None:
            text = "not started, because its deadline had passed"
        case "fenced":
            text = "killed, because its deadline had passed"
        case "guard died":
            text = "its guard process died, and the command was killed"
        case "not started" | "refused":
            text = report["why"] if "why" in report else explain(command, report["error"])
        case _:
            text = "stopped"
    left = ", ".join(str(pid) for pid in report.get("left", ()))
    return f"{text}; left behind, since they are of another user: {left}" if left else text


def _signal_name(number: int | None) -> str:
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return f"signal {number}"
