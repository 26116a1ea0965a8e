"""Hooks: one at a time, the latest wins, a failure is tried again; real ones leave nothing."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.agent.network import now
from tests.process.helpers import HOLD, WAIT, Life
from tests.support.simloop import virtual

from kontrol.agent.hooks import HookRequest, HookRunner, HookStatus, RunCommand
from kontrol.process.command import Command, Outcome
from kontrol.process.guard import Guard
from kontrol.process.run import OnChunk, OnStderr


def ended(status: int) -> Outcome:
    tail = b"first\nno such host\n"
    return Outcome("exited", status, None, b"", tail, 0.0, f"exit status {status}")


@dataclass
class Commands:
    """Runs commands in place of a guard: each takes `seconds` and exits with `status`."""

    seconds: float = 1.0
    status: int = 0
    begun: list[tuple[float, str]] = field(default_factory=list)
    over: list[tuple[float, str]] = field(default_factory=list)
    given: list[Command] = field(default_factory=list)
    running: int = 0

    async def run(
        self,
        command: Command,
        *,
        deadline: float | None,
        on_stderr: OnStderr | None = None,
        on_stdout: OnChunk | None = None,
    ) -> Outcome:
        assert self.running == 0
        assert deadline is None
        name = command.argv[0]
        self.running += 1
        self.given.append(command)
        self.begun.append((now(), name))
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.over.append((now(), f"{name} killed"))
            raise
        finally:
            self.running -= 1
        self.over.append((now(), name))
        return ended(self.status)

    @property
    def names(self) -> list[str]:
        return [name for _, name in self.begun]


@asynccontextmanager
async def running(run: RunCommand) -> AsyncIterator[HookRunner]:
    runner = HookRunner(run, environ=ENVIRON, secrets={"TOKEN"}, uniform=lambda: 1.0)
    task = asyncio.create_task(runner.run())
    await asyncio.sleep(0)
    try:
        yield runner
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


ENVIRON = {"PATH": os.environ["PATH"], "PLAIN": "1", "TOKEN": "secret"}


def request(name: str, *, urgent: bool = False) -> HookRequest:
    return HookRequest(name, (name,), {"N": "7"}, timeout=8.0, grace=2.0, urgent=urgent)


@virtual
async def test_it_runs_once_with_its_environment_and_its_times() -> None:
    commands = Commands()
    async with running(commands.run) as runner:
        runner.want(request("silent"))
        await asyncio.sleep(100)
        [status] = runner.statuses
    [command] = commands.given
    assert command.env == {"PATH": ENVIRON["PATH"], "PLAIN": "1", "N": "7", "HOOK": "silent"}
    assert (command.timeout, command.grace) == (6.0, 2.0)
    assert status == HookStatus("silent", runs=1, ended=99.0, seconds=1.0)


@virtual
async def test_of_those_wanted_while_one_runs_only_the_last_is_run() -> None:
    commands = Commands(seconds=10)
    async with running(commands.run) as runner:
        start = now()
        for name in "abcd":
            runner.want(request(name))
            await asyncio.sleep(1)
        await asyncio.sleep(100)
    assert commands.begun == [(start, "a"), (start + 10, "d")]


@virtual
async def test_what_fails_is_tried_again_until_it_succeeds() -> None:
    commands = Commands(seconds=0, status=3)
    async with running(commands.run) as runner:
        start = now()
        runner.want(request("silent"))
        await asyncio.sleep(60)
        [status] = runner.statuses
        assert status.error == "exit status 3: no such host"
        assert status.runs == status.failures == len(commands.begun)
        commands.status = 0
        await asyncio.sleep(100)
        [status] = runner.statuses
    times = [round(at - start, 3) for at, _ in commands.begun]
    assert times[:8] == [0, 0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 12.7]
    assert times[8:] == [22.7, 32.7, 42.7, 52.7, 62.7]
    assert status.error is None
    assert status.runs == status.failures + 1


@virtual
async def test_what_is_wanted_next_does_not_wait_for_a_retry_and_retries_from_the_first_delay() -> (
    None
):
    commands = Commands(seconds=0, status=1)
    async with running(commands.run) as runner:
        runner.want(request("silent"))
        await asyncio.sleep(15)
        start = now()
        runner.want(request("heard"))
        await asyncio.sleep(0.5)
    later = [(round(at - start, 3), name) for at, name in commands.begun if at >= start]
    assert later == [(0, "heard"), (0.1, "heard"), (0.3, "heard")]


@virtual
async def test_an_urgent_one_ends_another_but_not_its_own() -> None:
    commands = Commands(seconds=10)
    async with running(commands.run) as runner:
        start = now()
        runner.want(request("heard"))
        await asyncio.sleep(1)
        runner.want(request("silent", urgent=True))
        await asyncio.sleep(1)
        runner.want(request("heard"))
        runner.want(request("silent", urgent=True))
        await asyncio.sleep(30)
        heard, silent = runner.statuses
    assert commands.over == [
        (start + 1, "heard killed"),
        (start + 11, "silent"),
        (start + 21, "silent"),
    ]
    assert (heard.runs, heard.failures, heard.running) == (1, 0, None)
    assert (silent.runs, silent.failures) == (2, 0)


@virtual
async def test_it_tells_for_how_long_one_runs_and_ends_it_with_itself() -> None:
    commands = Commands(seconds=10)
    async with running(commands.run) as runner:
        runner.want(request("heard"))
        await asyncio.sleep(4)
        [status] = runner.statuses
    assert status.running == pytest.approx(4)
    assert [name for _, name in commands.over] == ["heard killed"]


@virtual
async def test_a_command_that_cannot_be_run_has_failed() -> None:
    def refuse(*_: object, **__: object) -> Awaitable[Outcome]:
        async def fail() -> Outcome:
            raise OSError(24, "too many open files")

        return fail()

    async with running(refuse) as runner:
        runner.want(request("silent"))
        await asyncio.sleep(0.05)
        [status] = runner.statuses
    assert (status.failures, status.error) == (1, "[Errno 24] too many open files")


WANTS = st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.floats(0, 5)), max_size=30)


@settings(max_examples=40)
@given(WANTS, st.floats(0, 8), st.integers(0, 1))
def test_the_last_one_wanted_has_always_run_after_it_was_wanted(
    wants: list[tuple[str, bool, float]], seconds: float, status: int
) -> None:
    @virtual
    async def check() -> None:
        commands = Commands(seconds, status)
        last = 0.0
        async with running(commands.run) as runner:
            for name, urgent, pause in wants:
                last = now()
                runner.want(request(name, urgent=urgent))
                await asyncio.sleep(pause)
            commands.status = 0
            await asyncio.sleep(100)
        if wants:
            at, name = commands.begun[-1]
            assert name == wants[-1][0]
            assert at >= last
            assert commands.over[-1][1] == name

    check()


@pytest.mark.parametrize(("timeout", "grace"), [(1, 1), (1, 2), (1, 0), (1, -1)])
def test_a_grace_that_is_no_part_of_the_timeout_is_refused(timeout: float, grace: float) -> None:
    with pytest.raises(ValueError, match=f"grace {grace} of timeout {timeout}"):
        HookRequest("a", ("a",), timeout=timeout, grace=grace)


def shell(name: str, script: str, pipe: Life, *, timeout: float = 5.0) -> HookRequest:
    return HookRequest(
        name,
        ("/bin/sh", "-c", HOLD + script),
        {"LIFE": str(pipe.path)},
        timeout=timeout,
        grace=timeout / 2,
        urgent=name == "silent",
    )


class Endings(logging.Handler):
    """What a runner says of the commands that have ended: it logs each."""

    def __init__(self, runner: HookRunner) -> None:
        super().__init__()
        self._runner = runner
        self._lines: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.put_nowait(record.getMessage())

    async def get(self) -> HookStatus:
        name = (await self._lines.get()).split()[1].strip(":")
        return next(status for status in self._runner.statuses if status.name == name)


@asynccontextmanager
async def guarded(caplog: pytest.LogCaptureFixture) -> AsyncIterator[tuple[HookRunner, Endings]]:
    """A runner with a real guard, and what it says of the commands that have ended."""
    caplog.set_level("INFO")
    logger = logging.getLogger("kontrol.agent.hooks")
    async with asyncio.timeout(2 * WAIT), Guard() as guard, running(guard.run) as runner:
        endings = Endings(runner)
        logger.addHandler(endings)
        try:
            yield runner, endings
        finally:
            logger.removeHandler(endings)


async def test_a_real_hook_is_logged(pipe: Life, caplog: pytest.LogCaptureFixture) -> None:
    async with guarded(caplog) as (runner, endings):
        runner.want(shell("silent", "echo $HOOK; echo demoted >&2; printf end", pipe))
        status = await endings.get()
    assert (status.failures, status.error) == (0, None)
    lines = [r.getMessage() for r in caplog.records if r.name == "kontrol.hook"]
    assert sorted(lines) == ["silent: demoted", "silent: end", "silent: silent"]


async def test_a_real_hook_that_hangs_is_killed_with_what_it_forked(
    pipe: Life, caplog: pytest.LogCaptureFixture
) -> None:
    stubborn = "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000' & echo up >&9; sleep 1000"
    async with guarded(caplog) as (runner, endings):
        began = asyncio.get_running_loop().time()
        runner.want(shell("silent", stubborn, pipe, timeout=0.6))
        assert await pipe.line() == "up"
        status = await endings.get()
        took = asyncio.get_running_loop().time() - began
        runner.want(shell("heard", "true", pipe))
        await endings.get()
    await pipe.gone()
    assert (status.failures, status.timeouts) == (1, 1)
    assert status.error is not None
    assert "timed out after 0.3 s" in status.error
    assert took < 5.0  # it would sleep for 1000


async def test_an_urgent_real_hook_starts_when_nothing_of_the_other_is_left(
    pipe: Life, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock = f"exec 8>{tmp_path}/lock; flock -n 8; "
    async with guarded(caplog) as (runner, endings):
        forks = f"{lock} trap '' TERM; setsid sleep 1000 & echo up >&9; wait"
        runner.want(shell("heard", forks, pipe))
        assert await pipe.line() == "up"
        runner.want(shell("silent", lock, pipe))
        heard, silent = await endings.get(), await endings.get()
    assert (heard.name, heard.failures) == ("heard", 0)
    assert (silent.name, silent.runs, silent.error) == ("silent", 1, None)
    await pipe.gone()
