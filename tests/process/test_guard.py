"""A guard runs commands: how they end is told exactly, and nothing of them is left."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.process.helpers import (
    HOLD,
    WAIT,
    Life,
    descriptors,
    is_empty,
    real_path,
    resident,
    shell,
)

from kontrol.process import run as run_module
from kontrol.process.clock import boottime
from kontrol.process.command import Command, Reason
from kontrol.process.guard import Guard, GuardError
from kontrol_common.processes import ENDING_SIGNALS, STRAY_SIGNALS, children, exited


def holding(
    pipe: Life, script: str, *, timeout: float | None = None, grace: float = 5.0
) -> Command:
    return shell(HOLD + script, env={"LIFE": str(pipe.path)}, timeout=timeout, grace=grace)


async def test_tells_status_output_and_how_long_it_took(guard: Guard) -> None:
    lines: list[str] = []
    outcome = await guard.run(
        shell("echo out; echo 'err é' >&2; exit 3"), deadline=None, on_stderr=lines.append
    )
    assert (outcome.reason, outcome.status, outcome.signal) == ("exited", 3, None)
    assert (outcome.stdout, outcome.stderr_tail) == (b"out\n", "err é\n".encode())
    assert (lines, outcome.detail) == (["err é"], "exit status 3")
    assert 0 < outcome.seconds < WAIT


async def test_tells_the_signal_that_ended_it(guard: Guard) -> None:
    outcome = await guard.run(shell("kill -SEGV $$"), deadline=None)
    assert (outcome.reason, outcome.status, outcome.signal) == ("signalled", None, signal.SIGSEGV)
    assert outcome.detail == "ended by SIGSEGV"


async def test_gives_exactly_the_environment_folder_and_input(guard: Guard, tmp_path: Path) -> None:
    env = {"A": "1", "B": "two\nlines", "ODD": "caf\udce9", "É": "é" * 10_000}
    command = Command(("/usr/bin/env", "-0"), env, cwd=str(tmp_path))
    seen = (await guard.run(command, deadline=None)).stdout.decode("utf-8", "surrogateescape")
    assert dict(item.split("=", 1) for item in seen.split("\0") if item) == env
    command = Command(("/bin/sh", "-c", "pwd -P; cat"), {}, cwd=str(tmp_path), stdin=b"in\0put")
    outcome = await guard.run(command, deadline=None)
    assert outcome.stdout == real_path(tmp_path).encode() + b"\nin\0put"


async def test_input_of_any_size_may_be_read_or_not(guard: Guard) -> None:
    data = b"x" * 5_000_000
    outcome = await guard.run(shell("wc -c", stdin=data), deadline=None)
    assert outcome.stdout.strip() == b"5000000"
    outcome = await guard.run(shell("exit 0", stdin=data), deadline=None)
    assert (outcome.reason, outcome.status) == ("exited", 0)


async def test_stderr_can_be_passed_on_whole(guard: Guard) -> None:
    chunks: list[bytes] = []

    async def take(chunk: bytes) -> None:
        await asyncio.sleep(0)
        chunks.append(chunk)

    script = "yes | head -c 3000000 >&2; printf end >&2"
    outcome = await guard.run(shell(script), deadline=None, on_stderr_chunk=take)
    assert (outcome.status, outcome.stderr_tail[-4:]) == (0, b"\nend")
    assert b"".join(chunks) == b"y\n" * 1_500_000 + b"end"


async def test_a_hundred_megabytes_of_stderr_flow_in_flat_memory(guard: Guard) -> None:
    lines: list[str] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    script = "yes 0123456789abcde | head -c 80000000 >&2; head -c 20000000 /dev/zero >&2; echo >&2"
    outcome = await guard.run(shell(script), deadline=None, on_stderr=lines.append)
    assert (outcome.reason, outcome.status) == ("exited", 0)
    assert outcome.stderr_tail == b"\0" * 4095 + b"\n"
    assert lines[0] == "0123456789abcde"
    assert len(lines) < 5000 + 100 * outcome.seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


async def test_too_much_output_ends_it(guard: Guard, pipe: Life) -> None:
    outcome = await guard.run(holding(pipe, "yes"), deadline=None)
    assert outcome.reason == "too much output"
    assert len(outcome.stdout) <= 512 * 1024
    assert pipe.is_gone()
    command = shell("head -c 600000 /dev/zero")  # at an end before it is all read
    assert (await guard.run(command, deadline=None)).reason == "too much output"


async def test_streams_output_as_it_comes(guard: Guard, pipe: Life) -> None:
    seen = bytearray()
    first = asyncio.Event()

    def take(chunk: bytes) -> None:
        seen.extend(chunk)
        first.set()

    command = holding(pipe, "echo first; echo up >&9; sleep 600")
    task = asyncio.ensure_future(guard.run(command, deadline=None, on_stdout=take))
    assert await pipe.line() == "up"
    await asyncio.wait_for(first.wait(), WAIT)
    assert seen == b"first\n"
    await guard.stop()
    assert (await task).stdout == b""


async def test_a_background_child_that_holds_stdout_does_not_hold_the_end(
    guard: Guard, pipe: Life
) -> None:
    outcome = await guard.run(
        holding(pipe, "sleep 600 & setsid sleep 600 & echo done"), deadline=None
    )
    assert (outcome.status, outcome.stdout) == (0, b"done\n")
    assert pipe.is_gone()


async def test_another_process_that_holds_stdout_does_not_delay_the_end(
    guard: Guard, pipe: Life
) -> None:
    # Not descriptor 1: while a shell redirects, its own may be another.
    script = "exec 8>&1; echo $$ >&9; while [ ! -e $LIFE.go ]; do sleep 0.01; done; echo done"
    task = asyncio.ensure_future(guard.run(holding(pipe, script), deadline=None))
    pid = await pipe.line()
    other = os.open(f"/proc/{pid}/fd/8", os.O_WRONLY)
    try:
        os.mkfifo(f"{pipe.path}.go")
        assert (await task).stdout == b"done\n"
    finally:
        os.close(other)


@pytest.mark.parametrize("how", ["timeout", "stopped", "fenced"])
async def test_a_crowd_that_hides_and_ignores_sigterm_is_ended_to_the_last(
    guard: Guard, pipe: Life, how: Reason
) -> None:
    script = (
        "trap '' TERM; sleep 600 & (setsid sleep 600 &) & "
        "setsid sh -c 'trap \"\" TERM; (sleep 600 &) & wait; sleep 600' & "
        "echo up >&9; wait; sleep 600"
    )
    command = holding(pipe, script, grace=0.2, timeout=0.5 if how == "timeout" else None)
    deadline = boottime() + 0.5 if how == "fenced" else None
    task = asyncio.ensure_future(guard.run(command, deadline=deadline))
    assert await pipe.line() == "up"
    if how == "stopped":
        await guard.stop()
        assert pipe.is_gone()
    outcome = await task
    assert (outcome.reason, outcome.signal) == (how, signal.SIGKILL)
    assert pipe.is_gone()


async def test_sigterm_lets_each_process_clean_up(guard: Guard, pipe: Life) -> None:
    script = (
        "trap 'exit 5' TERM; "
        "sh -c 'trap \"echo child >&9; exit\" TERM; echo up >&9; while :; do sleep 0.01; done' & "
        "while :; do sleep 0.01; done"
    )
    task = asyncio.ensure_future(guard.run(holding(pipe, script), deadline=None))
    assert await pipe.line() == "up"
    await guard.stop()
    outcome = await task
    assert (outcome.reason, outcome.status) == ("stopped", 5)
    assert await pipe.line() == "child"


async def test_one_that_forks_and_hides_without_end_is_ended(guard: Guard, pipe: Life) -> None:
    source = (
        "import os\nos.write(9, b'up\\n')\n"
        "while True:\n  if os.fork(): os._exit(0)\n  os.setsid()\n  if os.fork(): os._exit(0)\n"
    )
    script = f'(exec {sys.executable} -I -S -c "{source}") & sleep 600'
    task = asyncio.ensure_future(guard.run(holding(pipe, script), deadline=None))
    assert await pipe.line() == "up"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pipe.is_gone()


async def test_an_extension_moves_the_deadline(guard: Guard) -> None:
    task = asyncio.ensure_future(guard.run(shell("sleep 600"), deadline=boottime() + 0.3))
    await asyncio.sleep(0)
    guard.extend(boottime() + 0.8)
    outcome = await task
    assert (outcome.reason, outcome.signal) == ("fenced", signal.SIGKILL)
    assert 0.75 < outcome.seconds < WAIT


async def test_past_its_deadline_it_is_not_started(guard: Guard, tmp_path: Path) -> None:
    outcome = await guard.run(shell(f"touch {tmp_path}/ran"), deadline=boottime())
    assert (outcome.reason, outcome.status, outcome.signal) == ("fenced", None, None)
    assert is_empty(tmp_path)


async def test_cancelled_it_is_gone_before_the_caller_goes_on(guard: Guard, pipe: Life) -> None:
    command = holding(pipe, "trap '' TERM; (setsid sleep 600 &); echo up >&9; sleep 600; sleep 600")
    task = asyncio.ensure_future(guard.run(command, deadline=None))
    assert await pipe.line() == "up"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pipe.is_gone()
    assert (await guard.run(shell("exit 4"), deadline=None)).status == 4


async def test_cancelled_twice_the_next_command_still_has_the_guard_to_itself(
    guard: Guard, pipe: Life
) -> None:
    command = holding(pipe, "echo up >&9; sleep 600")
    task = asyncio.ensure_future(guard.run(command, deadline=None))
    assert await pipe.line() == "up"
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await guard.stop()
    assert pipe.is_gone()
    assert (await guard.run(shell("exit 4"), deadline=None)).status == 4


async def test_a_stop_before_it_is_started_keeps_it_from_starting(tmp_path: Path) -> None:
    guard = Guard()
    starting = asyncio.ensure_future(guard.start())
    await asyncio.sleep(0)
    task = asyncio.ensure_future(guard.run(shell(f"touch {tmp_path}/ran"), deadline=None))
    await asyncio.sleep(0)
    await guard.stop()
    assert (await task).reason == "stopped"
    await starting
    await guard.close()
    assert is_empty(tmp_path)


async def test_closing_kills_what_runs_and_the_guard(pipe: Life) -> None:
    guard = Guard()
    await guard.start()
    pid = guard.pid
    assert pid is not None
    task = asyncio.ensure_future(guard.run(holding(pipe, "echo up >&9; sleep 600"), deadline=None))
    assert await pipe.line() == "up"
    await guard.close()
    assert pipe.is_gone()
    assert (await task).reason == "stopped"
    assert guard.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await guard.close()
    with pytest.raises(GuardError, match="is not running"):
        await guard.run(shell("exit"), deadline=None)


async def test_one_command_at_a_time(guard: Guard, pipe: Life) -> None:
    task = asyncio.ensure_future(guard.run(holding(pipe, "echo up >&9; sleep 600"), deadline=None))
    assert await pipe.line() == "up"
    with pytest.raises(GuardError, match="is running a command"):
        await guard.run(shell("exit"), deadline=None)
    await guard.stop()
    await task


async def test_a_guard_that_died_is_replaced(guard: Guard) -> None:
    died = guard.pid
    assert died is not None
    os.kill(died, signal.SIGKILL)
    await exited(died)
    reasons = [(await guard.run(shell("exit"), deadline=None)).reason for _ in range(2)]
    assert reasons[1] == "exited"
    assert guard.pid not in {None, died}


async def test_a_guard_that_is_stuck_is_replaced(
    guard: Guard, pipe: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "REPORT_TIMEOUT", 0.2)
    command = shell(
        'exec 9>"$LIFE"; echo up >&9; exec sleep 600', env={"LIFE": str(pipe.path)}, grace=0.1
    )
    task = asyncio.ensure_future(guard.run(command, deadline=None))
    assert await pipe.line() == "up"
    assert guard.pid is not None
    os.kill(guard.pid, signal.SIGSTOP)
    await guard.stop()
    assert (await task).reason == "guard died"
    await pipe.gone()  # the main process, by the kernel
    assert (await guard.run(shell("exit"), deadline=None)).reason == "exited"


async def test_signals_for_the_daemon_do_not_end_its_guard(guard: Guard) -> None:
    pid = guard.pid
    assert pid is not None
    for number in (*ENDING_SIGNALS, *STRAY_SIGNALS):
        os.kill(pid, number)
    assert (await guard.run(shell("exit 6"), deadline=None)).status == 6
    assert guard.pid == pid


async def test_a_command_has_the_default_of_every_signal_that_its_guard_ignores(
    guard: Guard,
) -> None:
    for number in (*ENDING_SIGNALS, *STRAY_SIGNALS):
        outcome = await guard.run(shell(f"kill -{number} $$; exit 3"), deadline=None)
        assert (outcome.reason, outcome.signal) == ("signalled", number)


async def test_nothing_leaks_over_many_runs(guard: Guard) -> None:
    assert guard.pid is not None
    await guard.run(shell("exit"), deadline=None)
    before = descriptors(os.getpid()), descriptors(guard.pid)
    commands = [shell("(sleep 600 &)"), Command(("/no/such",), {}), shell("exit 1", stdin=b"x")]
    for command in commands * 10:
        await guard.run(command, deadline=boottime() + 600)
        await guard.run(command, deadline=boottime() - 1)
    assert (descriptors(os.getpid()), descriptors(guard.pid)) == before
    assert children(guard.pid) == []


async def test_the_guard_is_small(guard: Guard) -> None:
    assert guard.pid is not None
    assert resident(guard.pid) < 16 * 1024 * 1024


def test_the_guard_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.path.append(sys.argv[1]); import kontrol.process.guard_main; "
        "print(*sys.modules)"
    )
    source = Path(run_module.__file__).parents[2]
    loaded = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, source],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=True,
    ).stdout.split()
    heavy = {"asyncio", "subprocess", "logging", "typing", "pathlib", "dataclasses", "tempfile"}
    assert "kontrol.process.guard_main" in loaded
    assert not heavy & set(loaded)


async def test_a_guard_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    monkeypatch.setattr("kontrol.process.guard._READY", 0.3)
    with pytest.raises(GuardError, match=r"/no/such/python.*No such file"):
        await Guard().start()
