"""The virtual loop: time, order, and what a pause and a crash do to a node."""

import asyncio
import gc
import math
from collections.abc import Callable, Coroutine

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.simloop import NODE, START, Clock, SimError, SimLoop, run, virtual


def sim() -> SimLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    return loop


async def ticker(name: str, seen: list[tuple[str, float]], period: float, count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(period)
        seen.append((name, sim().time()))


@virtual
async def test_time_passes_only_when_all_wait() -> None:
    start = sim().time()
    await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(7200))
    assert sim().time() - start == 7200


@virtual
async def test_timeouts_fire_at_their_time() -> None:
    start = sim().time()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.5):
            await asyncio.Event().wait()
    assert sim().time() - start == 2.5


@virtual
async def test_callbacks_of_a_node_keep_their_order() -> None:
    seen: list[int] = []
    for i in range(100):
        sim().call_soon(seen.append, i)
    await asyncio.sleep(1)
    assert seen == list(range(100))


def orders(make: Callable[[list[str]], Coroutine[object, object, None]]) -> set[str]:
    found: set[str] = set()
    for seed in range(30):
        seen: list[str] = []
        run(make(seen), seed=seed)
        again: list[str] = []
        run(make(again), seed=seed)
        assert seen == again
        found.add("".join(seen))
    return found


def test_the_seed_orders_timers_of_one_instant() -> None:
    async def main(seen: list[str]) -> None:
        for name in "abc":
            sim().call_later(1, seen.append, name)
        await asyncio.sleep(2)

    assert len(orders(main)) == 6


def test_the_seed_interleaves_nodes() -> None:
    async def main(seen: list[str]) -> None:
        async def work(name: str) -> None:
            seen.append(name)
            await asyncio.sleep(0)
            seen.append(name.upper())

        await asyncio.gather(*(sim().spawn(name, work(name)) for name in "ab"))

    assert orders(main) == {"aAbB", "abAB", "abBA", "bBaA", "baAB", "baBA"}


@virtual(seeds=5)
async def test_children_and_timers_inherit_the_node() -> None:
    async def child() -> str:
        await asyncio.sleep(1)
        return NODE.get()

    async def parent() -> tuple[str, str]:
        return NODE.get(), await asyncio.create_task(child())

    assert await sim().spawn("m1", parent()) == ("m1", "m1")
    assert NODE.get() == ""


@virtual(seeds=5)
async def test_a_paused_node_is_late_and_loses_nothing() -> None:
    seen: list[tuple[str, float]] = []
    start = sim().time()
    task = sim().spawn("m1", ticker("m1", seen, 1, 3))
    await asyncio.sleep(1.5)
    sim().pause("m1")
    await asyncio.sleep(10)
    assert seen == [("m1", start + 1)]
    sim().resume("m1")
    await task
    assert seen == [("m1", start + 1), ("m1", start + 11.5), ("m1", start + 12.5)]


@virtual
async def test_a_node_lives_by_a_clock_of_its_own() -> None:
    sim().set_clock("m1", Clock(rate=1.05, offset=500))
    started = sim().world

    async def work() -> tuple[float, float]:
        begin = sim().time()
        await asyncio.sleep(5.25)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout_at(sim().time() + 5.25):
                await asyncio.Event().wait()
        return begin, sim().time()

    begin, end = await sim().spawn("m1", work())
    assert begin == 500 + 1.05 * START
    assert end - begin == pytest.approx(10.5)
    assert sim().world - started == pytest.approx(10)
    assert sim().time() == sim().world


@given(st.floats(0.9, 1.1), st.floats(-1e6, 1e6), st.floats(0, 1e7))
def test_a_timer_is_never_early_by_the_clock_of_its_node(
    rate: float, offset: float, world: float
) -> None:
    clock = Clock(rate, offset)
    reading = clock.shows(world)
    for due in (reading, math.nextafter(reading, math.inf), math.nextafter(reading, -math.inf)):
        assert clock.shows(clock.when(due)) >= due
        assert clock.when(due) == pytest.approx(world, abs=1e-6)


@virtual
async def test_a_timer_belongs_to_the_clock_of_the_node_that_it_calls() -> None:
    sim().set_clock("m1", Clock(rate=2.0, offset=7))
    seen: list[tuple[float, float]] = []

    def called() -> None:
        seen.append((sim().world - START, sim().time()))

    async def work() -> None:
        sim().call_later(4, called)
        sim().call_later(4, called, context=sim().context(""))
        sim().call_at(sim().time() + 6, called)

    await sim().spawn("m1", work())
    sim().call_later(10, called, context=sim().context("m1"))
    await asyncio.sleep(10)
    m1 = Clock(2.0, 7)
    assert seen == [
        (2, m1.shows(START + 2)), (3, m1.shows(START + 3)), (4, START + 4),
        (5, m1.shows(START + 5)),
    ]  # fmt: skip


@virtual
async def test_the_clock_of_a_suspended_node_stands_still() -> None:
    seen: list[tuple[str, float]] = []
    start = sim().world
    task = sim().spawn("m1", ticker("m1", seen, 1, 3))
    gone = sim().spawn("m1", asyncio.sleep(5))
    await asyncio.sleep(1.5)
    sim().suspend("m1")
    gone.cancel()
    await asyncio.sleep(10)
    assert sim().paused("m1")
    sim().resume("m1")
    await task
    assert seen == [("m1", start + 1), ("m1", start + 2), ("m1", start + 3)]
    assert sim().world == start + 13
    assert gone.cancelled()


@virtual(seeds=5)
async def test_a_crashed_node_runs_nothing_more() -> None:
    seen: list[str] = []

    async def victim(future: asyncio.Future[None]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(5))
                await future
        finally:
            seen.append("cleaned up")

    future: asyncio.Future[None] = sim().create_future()
    task = sim().spawn("m1", victim(future))
    sim().spawn("m1", ticker("m1", [], 1, 100)).add_done_callback(lambda _: seen.append("done"))
    await asyncio.sleep(2)
    sim().crash("m1")
    future.set_result(None)
    task.cancel()
    born_dead = sim().spawn("m1", victim(future))
    await asyncio.sleep(10)
    gc.collect()
    assert not born_dead.done()
    assert seen == []


def test_a_crashed_node_is_let_go_without_noise(capsys: pytest.CaptureFixture[str]) -> None:
    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)
            await asyncio.sleep(1)

    async def main() -> None:
        task = sim().spawn("m1", stubborn())
        await asyncio.sleep(1)
        sim().crash("m1")
        assert not task.done()

    run(main())
    gc.collect()
    assert capsys.readouterr() == ("", "")


def test_a_deadlock_says_who_waits() -> None:
    async def main() -> None:
        await sim().spawn("m1", wait_for_ever())

    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(SimError, match=r"deadlock at 0.000 s.*'m1'"):
        run(main())


def test_a_livelock_is_bounded() -> None:
    async def main() -> None:
        def again() -> None:
            sim().call_soon(again)

        again()
        await asyncio.sleep(1)

    with pytest.raises(SimError, match="no end after 1001 steps"):
        run(main(), max_steps=1000)


def test_what_is_not_handled_is_raised() -> None:
    async def main() -> None:
        def broken() -> None:
            raise ValueError("here")

        sim().call_soon(broken)
        await asyncio.sleep(1)

    with pytest.raises(SimError, match="unhandled"):
        run(main())


def test_a_failure_names_its_seed() -> None:
    @virtual(seeds=3)
    async def fails() -> None:
        assert sim().seed < 2

    with pytest.raises(AssertionError) as caught:
        fails()
    assert caught.value.__notes__ == ["on a virtual loop with seed 2"]


@virtual
async def test_threads_are_calls() -> None:
    assert await asyncio.to_thread(lambda: NODE.get() + "here") == "here"


@virtual
async def test_cancelled_timers_are_forgotten() -> None:
    for _ in range(1000):
        async with asyncio.timeout(3600):
            await asyncio.sleep(0.001)
    assert len(sim()._timers) < 300


@virtual
async def test_sets_of_tasks_keep_their_order() -> None:
    tasks = {asyncio.create_task(asyncio.sleep(i)) for i in range(50)}
    assert sorted(hash(task) for task in tasks) == [min(map(hash, tasks)) + i for i in range(50)]
    await asyncio.wait(tasks)
