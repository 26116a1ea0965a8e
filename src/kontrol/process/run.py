"""One run of a command, as the daemon sees it: its output, the time by which it must end, its end.

`kontrol.process.guard` passes on what it reads, and asks for the outcome.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from kontrol.process.clock import boottime
from kontrol.process.command import Command, Lines, Outcome, Reason, Tail, explain

REPORT_TIMEOUT = (
    5.0  # seconds that a working guard may take to report after the command must have ended
)
FENCE_TIMEOUT = 0.5  # the same after the deadline: another leader may act soon after it

GUARD_DIED: Mapping[str, Any] = {"reason": "guard died"}

OnStderr = Callable[[str], None]
OnChunk = Callable[[bytes], Awaitable[None] | None]


class Run:
    """A command, from the request to the guard's report, `ended`.

    `over_limit` is called once, when the command has written more than its limit.
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
        self.report_timeout: asyncio.Timeout | None = None  # while the report is awaited
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
        """Collect a chunk or pass it on; drop what is over the limit."""
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
        """Keep the tail; pass on lines, or all chunks."""
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
        """Return the message that has the guard start it."""
        return {
            "op": "start",
            "run": self.number,
            "deadline": self.deadline,
            "timeout": self.command.timeout,
            "grace": self.command.grace,
            "scratch": self.command.scratch,
        }

    def latest(self) -> float | None:
        """Return the loop time by which a working guard has reported; None: no limit."""
        most = self.command.grace + REPORT_TIMEOUT
        times = []
        if self.deadline is not None:
            deadline = self._loop.time() + self.deadline - boottime()
            times.append(max(self.sent_at or 0.0, deadline) + FENCE_TIMEOUT)
        if self.command.timeout is not None:
            times.append(self._begun + self.command.timeout + most)
        if self.stop_at is not None:
            times.append(self.stop_at + most)
        return min(times, default=None)

    def report(self, message: Mapping[str, Any]) -> None:
        """Record the guard's report, or its substitute; only the first counts."""
        if not self.ended.done():
            self.ended.set_result(message)

    def guard_died(self) -> None:
        """Record that the guard is gone, and the command with it."""
        late = self.deadline is not None and boottime() >= self.deadline
        self.report({"reason": "fenced", "signal": signal.SIGKILL} if late else GUARD_DIED)

    def outcome(self) -> Outcome:
        """Return the outcome; `ended` must be done."""
        report = self.ended.result()
        reason: Reason = report["reason"]
        if reason == "exited" and self._written > self.command.stdout_limit:
            reason = "too much output"  # its last output was read after its end
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
