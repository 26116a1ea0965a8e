"""A pool of guards: side by side, kept warm for a while, and none left."""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
from tests.process.helpers import HOLD, Life, shell

from kontrol.process.pool import Guards
from kontrol_common.processes import children, exited


@pytest.fixture
async def alone() -> AsyncIterator[None]:
    """See to it that no child of this process is left."""
    before = set(children(os.getpid()))
    async with asyncio.timeout(50):
        yield
    assert set(children(os.getpid())) <= before


async def run(guards: Guards, script: str, **env: str) -> bytes:
    async with guards.guard() as guard:
        return (await guard.run(shell(script, env=env), deadline=None)).stdout


@pytest.mark.usefixtures("alone")
async def test_starts_none_before_it_is_needed_and_keeps_one_warm() -> None:
    async with Guards(most=4) as guards:
        assert not guards.pids
        assert await run(guards, "echo 1") == b"1\n"
        [pid] = guards.pids
        assert await run(guards, "echo 2") == b"2\n"
        assert guards.pids == {pid}
    assert not guards.pids


@pytest.mark.usefixtures("alone")
async def test_runs_so_many_at_once_and_no_more(pipe: Life) -> None:
    async with Guards(most=2) as guards, asyncio.TaskGroup() as group:
        script = HOLD + "echo up >&9; read -r go < $GO"
        go = pipe.path.with_name("go")
        os.mkfifo(go)
        for _ in range(3):
            group.create_task(run(guards, script, LIFE=str(pipe.path), GO=str(go)))
        assert [await pipe.line(), await pipe.line()] == ["up", "up"]
        assert len(guards.pids) == 2
        fd = os.open(go, os.O_RDWR)
        os.write(fd, b"1\n")
        assert await pipe.line() == "up"
        assert len(guards.pids) == 2
        os.write(fd, b"2\n3\n")
    os.close(fd)


@pytest.mark.usefixtures("alone")
async def test_an_idle_guard_ends_after_a_while() -> None:
    async with Guards(most=4, linger=0.01) as guards:
        await run(guards, "true")
        [pid] = guards.pids
        await exited(pid)
        async with asyncio.timeout(20):
            while guards.pids:  # noqa: ASYNC110 - it is reaped in the next turns of the loop
                await asyncio.sleep(0)
        assert await run(guards, "echo again") == b"again\n"


@pytest.mark.usefixtures("alone")
async def test_what_runs_is_killed_when_it_is_left(pipe: Life) -> None:
    async with Guards(most=4) as guards:
        script = HOLD + "setsid sleep 1000 & echo up >&9; wait"
        task = asyncio.create_task(run(guards, script, LIFE=str(pipe.path)))
        assert await pipe.line() == "up"
        task.cancel()
        await asyncio.wait({task})
        assert pipe.is_gone()
        assert await run(guards, "echo fine") == b"fine\n"


@pytest.mark.usefixtures("alone")
async def test_a_guard_that_is_cancelled_while_it_starts_is_not_left() -> None:
    async with Guards(most=1) as guards:
        for turns in range(12):
            task = asyncio.create_task(run(guards, "true"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
        assert await run(guards, "echo fine") == b"fine\n"


async def test_a_guard_knows_its_siblings() -> None:
    """What is left of a dead guard is killed, and its siblings are not."""
    async with (
        Guards(most=2, known=lambda: {4711}) as guards,
        guards.guard() as first,
        guards.guard() as second,
    ):
        known = first._supervisor._known
        assert known is not None
        assert set(known()) == {4711, first.pid, second.pid}
