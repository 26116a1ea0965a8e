"""The daemon is stopped, killed, or loses its guard: nothing of the command lives on."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.process.helpers import HOLD, WAIT, Life

from kontrol.process import guard as guard_module
from kontrol_common.processes import exited

SOURCE = Path(guard_module.__file__).parents[2]
PROGRAM = Path(__file__).with_name("daemon.py")

# A crowd that hides: out of the session, orphaned, deaf to SIGTERM; each holds the pipe.
CROWD = (
    HOLD
    + "trap '' TERM; sleep 600 & (setsid sleep 600 &) & "
    + "setsid sh -c 'trap \"\" TERM; (sleep 600 &) & wait; sleep 600' & "
)


class Daemon:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def told(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT):
            answer = json.loads(await self.process.stdout.readline())
        assert isinstance(answer, dict)
        return answer


@contextlib.asynccontextmanager
async def daemon(script: str, pipe: Life, **told: object) -> AsyncIterator[Daemon]:
    told = {"script": script, "env": {"LIFE": str(pipe.path)}, "seconds": 600.0, **told}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        PROGRAM,
        json.dumps(told),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    try:
        yield Daemon(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_stopped_past_the_deadline_its_command_is_dead_before_it_goes_on(
    pipe: Life,
) -> None:
    script = CROWD + "echo up >&9; wait; sleep 600"
    async with daemon(script, pipe, seconds=1.0) as subject:
        await subject.told()
        assert await pipe.line() == "up"
        subject.process.send_signal(signal.SIGSTOP)
        await pipe.gone()  # by the guard alone
        subject.process.send_signal(signal.SIGCONT)
        assert await subject.told() == {"reason": "fenced", "signal": signal.SIGKILL}
        assert await subject.told() == {"children": []}


async def test_killed_its_command_guard_and_files_are_gone_at_once(
    pipe: Life, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    (scratch / "below").mkdir(parents=True)
    (scratch / "pods.json").touch()
    script = CROWD + "echo up >&9; wait; sleep 600"
    async with daemon(script, pipe, scratch=str(scratch)) as subject:
        guard = (await subject.told())["guard"]
        assert await pipe.line() == "up"
        begun = asyncio.get_running_loop().time()
        subject.process.kill()
        await pipe.gone()
        seconds = asyncio.get_running_loop().time() - begun
        await asyncio.wait_for(exited(guard), WAIT)
    assert not scratch.exists()
    assert seconds < 5  # milliseconds, on a machine that is not busy


async def test_a_command_that_kills_its_parent_each_time_fails_each_time_and_leaves_nothing(
    pipe: Life,
) -> None:
    script = CROWD + "echo up >&9; kill -9 $PPID; wait; sleep 600"
    async with daemon(script, pipe, times=3) as subject:
        await subject.told()
        for _ in range(3):
            assert (await subject.told())["reason"] == "guard died"
            assert pipe.is_gone()
        assert await subject.told() == {"children": []}


async def test_a_command_that_stops_its_parent_is_ended_all_the_same(pipe: Life) -> None:
    script = CROWD + "echo up >&9; kill -STOP $PPID; wait; sleep 600"
    async with daemon(script, pipe, seconds=0.5) as subject:
        await subject.told()
        assert (await subject.told())["reason"] == "fenced"
        assert pipe.is_gone()
        assert await subject.told() == {"children": []}
