"""Hooks of a pod: commands that its agent runs when something has happened.

A hook follows a state that changes: published documents, or whether masters hear the pod. So only
the latest matters. `want` says what it is; the runner runs the hook for it, and tries again with
exponential backoff until the hook succeeds or something later is wanted. A guard owns each command
(`kontrol.process`): in time, its processes are gone, whatever they do.

Invariants: one command runs at a time, in the order in which they were wanted; of those that are
wanted while one runs, only the last is run; the last one wanted runs until it has succeeded once.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Never, Protocol

from kontrol.process.command import Command, Lines, Outcome
from kontrol.process.guard import GuardError
from kontrol.process.run import OnChunk, OnStderr

log = logging.getLogger(__name__)
_output = logging.getLogger("kontrol.hook")

_FIRST_RETRY = 0.1  # seconds; doubles with each failure
_LAST_RETRY = 10.0
_UNLIMITED = 2**63  # bytes of standard output, which is logged and not kept


class RunCommand(Protocol):
    """Runs one command to its end, as `Guard.run` does; cancelled, kills it first."""

    def __call__(
        self,
        command: Command,
        *,
        deadline: float | None,
        on_stderr: OnStderr | None = None,
        on_stdout: OnChunk | None = None,
    ) -> Awaitable[Outcome]:
        """Return the outcome. Raises `OSError`, `GuardError`."""
        ...


@dataclass(frozen=True, slots=True)
class HookRequest:
    """What to run, and in how many seconds it is killed.

    `name` is for people, metrics and `$HOOK`; `env` is added to the daemon's environment. After
    `timeout` less `grace` seconds the command gets SIGTERM, after `timeout` SIGKILL. `urgent`: a
    hook of another name that still runs is killed, so that this one starts immediately.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 60.0
    grace: float = 5.0
    urgent: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.grace < self.timeout:
            raise ValueError(f"grace {self.grace} of timeout {self.timeout}: expected less of it")


@dataclass(frozen=True, slots=True)
class HookStatus:
    """The runs of the hooks of one name since the start.

    `running` is the seconds for which one runs now; `ended` those since the last one ended, and
    `seconds` how long it took. `failures` counts those that did not exit with 0 (`timeouts`, among
    them, those killed because of their timeout) and `error` says why the last one failed, None if
    it did not. A hook that was ended because an urgent one was wanted is counted in `runs` alone.
    """

    name: str
    runs: int = 0
    failures: int = 0
    timeouts: int = 0
    running: float | None = None
    ended: float | None = None
    seconds: float | None = None
    error: str | None = None


class HookRunner:
    """Runs the latest hook that is wanted, while `run` runs.

    Commands get `environ` without the variables that `secrets` names. `uniform` returns numbers
    evenly spread over 0 to 1.
    """

    def __init__(
        self,
        run: RunCommand,
        *,
        environ: Mapping[str, str],
        secrets: Collection[str],
        uniform: Callable[[], float],
    ) -> None:
        self._run = run
        self._environ = {name: text for name, text in environ.items() if name not in secrets}
        self._uniform = uniform
        self._wanted: HookRequest | None = None  # None: nothing is left to do
        self._news = asyncio.Event()
        self._current: tuple[HookRequest, asyncio.Task[Outcome]] | None = None
        self._statuses: dict[str, HookStatus] = {}  # times in them are loop times

    @property
    def statuses(self) -> tuple[HookStatus, ...]:
        """The runs so far, by name, in the order of the first run of each."""
        now = asyncio.get_running_loop().time()
        return tuple(
            replace(
                status,
                running=None if status.running is None else now - status.running,
                ended=None if status.ended is None else now - status.ended,
            )
            for status in self._statuses.values()
        )

    def want(self, request: HookRequest) -> None:
        """Run this next, in place of what was wanted before and has not begun.

        What runs is left to end, unless `request` is urgent and of another name.
        """
        self._wanted = request
        self._news.set()
        if self._current is not None and request.urgent:
            current, task = self._current
            if current.name != request.name:
                task.cancel()

    def withdraw(self) -> None:
        """Want nothing: what runs is left to end, and is not tried again."""
        self._wanted = None
        self._news.set()

    async def run(self) -> Never:
        """Run hooks until cancelled; then none of their processes is left."""
        failures = 0
        while True:
            await self._news.wait()
            self._news.clear()
            while (request := self._wanted) is not None:
                done = await self._attempt(request)
                if self._wanted is request and done:
                    self._wanted = None
                elif self._wanted is request:
                    delay = min(_FIRST_RETRY * 2**failures, _LAST_RETRY)
                    failures = min(failures + 1, 32)
                    await self._pause(delay * (0.75 + 0.25 * self._uniform()))
                if self._wanted is not request:
                    failures = 0

    async def _pause(self, seconds: float) -> None:
        """Wait, or until something else is wanted."""
        self._news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    async def _attempt(self, request: HookRequest) -> bool:
        """Run it once; return whether it succeeded."""
        loop = asyncio.get_running_loop()
        before = self._statuses.get(request.name, HookStatus(request.name))
        begun = loop.time()
        self._statuses[request.name] = replace(before, runs=before.runs + 1, running=begun)
        task = loop.create_task(self._conduct(request))
        self._current = request, task
        try:
            await asyncio.wait({task})
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
            self._current = None
        return self._finish(request, task, loop.time() - begun)

    def _finish(self, request: HookRequest, task: asyncio.Task[Outcome], seconds: float) -> bool:
        """Record how a command ended; return whether it succeeded."""
        before = self._statuses[request.name]
        now = asyncio.get_running_loop().time()
        status = replace(before, running=None, ended=now, seconds=seconds)
        if task.cancelled():
            log.warning("hook %s: ended after %.3f s: another one is due", request.name, seconds)
        else:
            why, timed_out = _failure(task)
            status = replace(
                status,
                failures=status.failures + (why is not None),
                timeouts=status.timeouts + timed_out,
                error=why,
            )
            if why is None:
                log.info("hook %s: done in %.3f s", request.name, seconds)
            else:
                log.warning("hook %s failed: %s; it is tried again", request.name, why)
        self._statuses[request.name] = status
        return not task.cancelled() and status.error is None

    async def _conduct(self, request: HookRequest) -> Outcome:
        loop, lines = asyncio.get_running_loop(), Lines()

        def show(line: str) -> None:
            _output.info("%s: %s", request.name, line)

        def on_stdout(chunk: bytes) -> None:
            for line in lines.feed(chunk, loop.time()):
                show(line)

        command = Command(
            request.argv,
            {**self._environ, **request.env, "HOOK": request.name},
            timeout=request.timeout - request.grace,
            grace=request.grace,
            stdout_limit=_UNLIMITED,
        )
        outcome = await self._run(command, deadline=None, on_stdout=on_stdout, on_stderr=show)
        for line in lines.end():
            show(line)
        return outcome


def _failure(task: asyncio.Task[Outcome]) -> tuple[str | None, bool]:
    """Return why a hook failed, None if it did not, and whether it took too long."""
    try:
        outcome = task.result()
    except (OSError, GuardError) as error:
        return str(error), False
    if outcome.reason == "exited" and outcome.status == 0:
        return None, False
    last = outcome.stderr_tail.decode("utf-8", "replace").strip().rpartition("\n")[2]
    why = f"{outcome.detail}: {last[:200]}" if last else outcome.detail
    return why, outcome.reason == "timeout"
