"""The loop on the boot clock, and a suspension: its clock jumps, while the kernel waits on."""

import asyncio
import os
import re
import selectors
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.agent.network import TTL, Master, one, running, silent, tier
from tests.support.memory import MemoryCluster, MemoryStore

from kontrol.ensemble.pod import Keepalive
from kontrol.master.watchcache import WatchCache
from kontrol.process.clock import boottime
from kontrol.process.loop import BootLoop

SOURCE = Path(__file__).parents[2] / "src" / "kontrol"
DEADLINE = 30.0
HOUR = 3600.0


class Clock:
    """The boot clock of a machine that `suspend` suspends."""

    def __init__(self) -> None:
        self.suspended = 0.0

    def __call__(self) -> float:
        return boottime() + self.suspended

    def suspend(self, seconds: float) -> None:
        self.suspended += seconds


def run(main: Coroutine[Any, Any, None], clock: Callable[[], float] = boottime) -> None:
    with asyncio.Runner(loop_factory=lambda: BootLoop(clock)) as runner:
        runner.run(main)


def test_its_time_is_the_boot_clock_s() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        before = boottime()
        assert before <= loop.time() <= boottime()
        await asyncio.sleep(0.05)
        assert before + 0.05 <= loop.time() <= before + DEADLINE

    run(main())


def test_what_came_due_during_a_suspension_is_due_at_once() -> None:
    clock = Clock()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        order: list[str] = []
        loop.call_later(2 * HOUR, order.append, "in two hours")
        waiting = loop.create_task(asyncio.sleep(0.9 * HOUR))
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5 * HOUR):
                loop.call_soon(clock.suspend, HOUR)
                await asyncio.Event().wait()
        order.append("timed out")
        await waiting
        assert order == ["timed out"]

    started = boottime()
    run(main(), clock)
    assert boottime() - started < DEADLINE


def test_the_gap_rule_sees_a_suspended_master() -> None:
    clock = Clock()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        follower = WatchCache(MemoryStore(MemoryCluster()), "/pods/", silence=TTL / 3)
        heard = asyncio.Event()
        hear = follower._mark_seen
        follower._mark_seen = lambda: (hear(), heard.set())[0]  # type: ignore[method-assign,func-returns-value]
        task = loop.create_task(follower.run())
        await follower.complete.wait()
        heard.clear()
        recovered = follower.recovered
        clock.suspend(HOUR)
        assert loop.time() - follower.confirmed >= HOUR  # the mirror is as old as that
        await heard.wait()
        assert follower.recovered >= recovered + HOUR
        task.cancel()
        await asyncio.wait([task])

    run(main(), clock)


def test_a_suspended_agent_reports_at_once_and_knows_its_silence() -> None:
    clock = Clock()

    async def main() -> None:
        asked: asyncio.Queue[Keepalive] = asyncio.Queue()
        master = Master(asked.put_nowait)
        agent = one(master).agent("10.0.0.1")
        async with running(agent):
            await asked.get()
            agent.update("a second keepalive, so that the first was acknowledged")
            await asked.get()
            clock.suspend(HOUR)
            resumed = clock()
            silence = tier(agent).acknowledged
            assert silence is not None
            assert silence >= HOUR
            await asked.get()
            assert master.times[2] - resumed < TTL / 8

    run(main(), clock)


def test_an_attempt_that_was_under_way_has_failed() -> None:
    clock = Clock()

    async def main() -> None:
        asked: asyncio.Queue[Keepalive] = asyncio.Queue()

        def answer(record: Keepalive) -> object:
            asked.put_nowait(record)
            return silent(record) if len(master.received) == 1 else None

        master = Master(answer)
        async with running(one(master).agent("10.0.0.1")):
            await asked.get()
            clock.suspend(HOUR)
            resumed = clock()
            await asked.get()
            assert master.opened == 2
            assert master.times[1] - resumed < TTL / 8

    run(main(), clock)


def test_a_wait_ends_although_the_monotonic_clock_stood_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    select = selectors.DefaultSelector.select

    def for_ever(self: Any, timeout: float | None = None) -> Any:  # noqa: ANN401 - as it is
        return select(self, None if timeout is not None and timeout > 0 else timeout)

    monkeypatch.setattr(selectors.DefaultSelector, "select", for_ever)

    async def main() -> None:
        for seconds in (0.3, 0.001, 0.1, 0.1):
            await asyncio.sleep(seconds)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await asyncio.Event().wait()

    run(main())


def test_a_timer_that_is_no_longer_needed_wakes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    select, waits = selectors.DefaultSelector.select, 0

    def counted(self: Any, timeout: float | None = None) -> Any:  # noqa: ANN401 - as it is
        nonlocal waits
        waits += 1
        return select(self, timeout)

    monkeypatch.setattr(selectors.DefaultSelector, "select", counted)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        reading, writing = os.pipe()
        readable = asyncio.Event()
        await asyncio.sleep(0.01)  # sets the timer, to expire while nothing is due
        loop.add_reader(reading, readable.set)
        other = await asyncio.create_subprocess_exec("sh", "-c", "sleep 0.5; echo", stdout=writing)
        before = waits
        await readable.wait()
        assert waits - before < 10
        loop.remove_reader(reading)
        await other.wait()
        os.close(reading)
        os.close(writing)

    run(main())


def test_nothing_is_left_open() -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - /proc, not a path of ours
    BootLoop().close()
    loop = BootLoop()
    loop.close()
    loop.close()
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


# What measures, and decides nothing that a suspension could make wrong.
OTHER_CLOCKS = {
    "process/clock.py": "the boot clock itself: without one, macOS falls back",
    "logs.py": "how often a repeated line is written",
    "httpclient.py": "how long a command waits for an answer",
    "cli/publish.py": "how long a command waits for an answer",
    "demo/scenario.py": "the pace of the demonstration, and what it shows",
}
OTHER_LOOPS = {
    "cli/boot.py": "a command that ends",
    "cli/invoke/commands.py": "a command that ends",
    "cli/operate/archive.py": "a command that ends",
    "demo/__init__.py": "starts daemons, and decides nothing",
}


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (r"\bmonotonic(_ns)?\(|\btime\.monotonic\b|CLOCK_MONOTONIC|perf_counter", OTHER_CLOCKS),
        (r"\basyncio\.run\(|new_event_loop|run_until_complete", OTHER_LOOPS),
    ],
    ids=["clocks", "loops"],
)
def test_what_decides_measures_by_the_boot_clock(pattern: str, allowed: dict[str, str]) -> None:
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if re.search(pattern, path.read_text(encoding="utf-8"))
    }
    assert found == allowed.keys()
