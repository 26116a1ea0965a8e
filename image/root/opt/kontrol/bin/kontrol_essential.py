# noqa: INP001 - not of a package: it lies beside supervisord
"""Essential jobs: the end of one ends supervisord, and so the container, with its status.

A job is marked in its own section: `environment=ESSENTIAL=true`. Its end is that its process ended
by itself, with whichever status, or that it cannot be started (FATAL); `supervisorctl stop` is not.
The status is the job's: 128 and the number for a signal, 127 if there is nothing to execute.

This listens within supervisord, which loads it as an RPC interface: a listener that is a process of
its own is not told statuses, and cannot say what supervisord's is to be.
"""

import atexit
import os
import sys

from supervisor import events, process
from supervisor.states import SupervisorStates
from supervisor.supervisord import Supervisor

MARK = "ESSENTIAL"
_TRUE = ("true", "yes", "on", "1")
_NOT_FOUND = 127  # as shells have it


class Essential:
    """Watches the jobs of one supervisord; has no methods for supervisorctl."""

    def __init__(self, supervisord: Supervisor) -> None:
        self._options = supervisord.options
        self._last = 0  # status of the process that supervisord has just waited for
        self._statuses: dict[int, int] = {}  # of jobs that did not start, by the job's identity
        self._ended = False
        decode = process.decode_wait_status

        def remember(status: int) -> tuple[int, str]:
            code = os.waitstatus_to_exitcode(status)
            self._last = 128 - code if code < 0 else code
            told: tuple[int, str] = decode(status)
            return told

        process.decode_wait_status = remember
        events.subscribe(events.ProcessStateBackoffEvent, self._not_started)
        events.subscribe(events.ProcessStateFatalEvent, self._given_up)
        events.subscribe(events.ProcessStateExitedEvent, self._exited)

    def _not_started(self, event: events.ProcessStateEvent) -> None:
        # Without a process number there was no process: it could not be executed.
        self._statuses[id(event.process)] = self._last if event.process.pid else _NOT_FOUND

    def _given_up(self, event: events.ProcessStateEvent) -> None:
        self._end(event.process, self._statuses.get(id(event.process)) or 1, "cannot be started")

    def _exited(self, event: events.ProcessStateEvent) -> None:
        self._end(event.process, self._last, "ended")

    def _end(self, job: process.Subprocess, status: int, how: str) -> None:
        marked = (job.config.environment or {}).get(MARK, "").lower() in _TRUE
        if self._ended or not marked:
            return
        self._ended = True
        line = f"essential job {job.config.name} {how}: ending all with status {status}"
        self._options.logger.critical(line)
        self._options.mood = SupervisorStates.SHUTDOWN
        atexit.register(_leave, status)


def _leave(status: int) -> None:
    """End the interpreter with a status that supervisord would not."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def make(supervisord: Supervisor, **_config: str) -> Essential:
    """Return the interface, as supervisord's configuration wants it."""
    return Essential(supervisord)
