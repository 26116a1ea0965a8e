"""An asyncio event loop on virtual time, that runs several *nodes* and fails them at will.

Nothing waits: when no handle is ready, time jumps to the next timer. Whatever real machines leave
open is drawn from one seed: which node runs next, and in which order the timers of one instant
fire. Within a node, callbacks keep the order in which they were scheduled, as asyncio promises. So
a run is repeated exactly by its seed.

Every handle belongs to the node that its context names: tasks, timers and callbacks inherit it
from the code that made them. A *paused* node's handles wait, also those of timers that come due, as
under SIGSTOP. A *crashed* node's handles are dropped permanently and its tasks are held, suspended,
until the loop is closed: no `finally` of theirs runs before that, as under SIGKILL. A restart is a
new node.

A node may have a clock of its own, with another zero and another rate: there `time()` shows that
clock, and its timers fire by it. It stands still while the node is *suspended*, as Linux's
CLOCK_MONOTONIC does while the machine sleeps; its boot clock, and the world's time, never do.

    @virtual
    async def test_it_waits() -> None:
        await asyncio.sleep(3600)  # takes no time
"""

import asyncio
import contextvars
import functools
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar, TypeVarTuple, overload

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

NODE: contextvars.ContextVar[str] = contextvars.ContextVar("NODE", default="")

START = 1000.0  # seconds; not 0, which code could take for "never"
MAX_STEPS = 2_000_000
PRUNE = 100  # cancelled timers that may lie about before the heap is rebuilt


@dataclass(frozen=True, slots=True)
class Clock:
    """What a node's clock shows: `offset` seconds, and `rate` for each second of the world's."""

    rate: float = 1.0
    offset: float = 0.0

    def shows(self, world: float) -> float:
        """Return its reading at a time of the world's."""
        return self.offset + self.rate * world

    def when(self, reading: float) -> float:
        """Return a time of the world's at which it shows `reading`, or hardly more: never less."""
        world = (reading - self.offset) / self.rate
        while self.shows(world) < reading:  # rounding; who waits until `reading` would wait again
            world = math.nextafter(world, math.inf)
        return world


class SimError(Exception):
    """The simulation cannot go on; the message says what it waits for."""


class SimFuture(asyncio.Future[_T]):
    """A future whose hash is a serial number, so that sets of them iterate the same every time."""

    serial = 0

    def __hash__(self) -> int:
        return self.serial


class SimTask(asyncio.Task[_T]):
    """A task whose hash is a serial number, as that of a `SimFuture`."""

    serial = 0

    def __hash__(self) -> int:
        return self.serial


class SimLoop(asyncio.BaseEventLoop):
    """The loop. `seed` decides every order that asyncio leaves open."""

    def __init__(self, seed: int = 0, max_steps: int = MAX_STEPS) -> None:
        super().__init__()
        self.seed = seed
        self.steps = 0
        self.unhandled: list[dict[str, Any]] = []
        self._max_steps = max_steps
        self._random = random.Random(f"loop {seed}")
        self._now = START
        self._serials = itertools.count(1)
        self._ready: deque[asyncio.Handle] = deque()  # call_soon appends here (BaseEventLoop)
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []  # a heap: when, serial
        self._timer_cancelled_count = 0  # TimerHandle.cancel counts here (BaseEventLoop)
        self._queues: dict[str, deque[asyncio.Handle]] = {}
        self._busy: dict[str, int] = {}  # nodes with something to run: which came how early
        self._ranks = itertools.count()  # of timers and nodes, in the order in which they came
        self._rank: dict[str, int] = {}
        self._paused: set[str] = set()
        self._clocks: dict[str, Clock] = {}
        self._asleep: dict[str, tuple[float, list[asyncio.TimerHandle]]] = {}  # since when
        self._crashed: set[str] = set()
        self._tasks: dict[SimTask[Any], str] = {}
        self._tasks_limit = 256
        self._graveyard: list[SimTask[Any]] = []
        self.set_task_factory(self._make_task)

    # Nodes

    def spawn(self, node: str, coro: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Start a task on `node`."""
        return self.create_task(coro, context=self.context(node))

    def context(self, node: str) -> contextvars.Context:
        """Return a context whose handles belong to `node`."""
        context = contextvars.copy_context()
        context.run(NODE.set, node)
        return context

    def pause(self, node: str) -> None:
        """Run nothing of `node` until `resume`."""
        self._hold(node)

    def suspend(self, node: str) -> None:
        """Pause `node`, and stop its clock: what it waits for comes later by as much."""
        self._hold(node)
        mine = [entry[2] for entry in self._timers if _node(entry[2]) == node]
        for timer in mine:
            timer._scheduled = False  # type: ignore[attr-defined]
        self._timers = [entry for entry in self._timers if _node(entry[2]) != node]
        heapq.heapify(self._timers)
        self._asleep[node] = self._now, mine

    def _hold(self, node: str) -> None:
        assert node, "the simulation itself is the node without a name"
        self._paused.add(node)
        self._busy.pop(node, None)

    def paused(self, node: str) -> bool:
        """Tell whether `node` is paused."""
        return node in self._paused

    def resume(self, node: str) -> None:
        """Let `node` go on, late."""
        self._paused.discard(node)
        if self._queues.get(node):
            self._busy[node] = self._rank[node]
        if node not in self._asleep:
            return
        since, timers = self._asleep.pop(node)
        slept = self._now - since
        clock = self._clocks.get(node, Clock())
        self._clocks[node] = replace(clock, offset=clock.offset - clock.rate * slept)
        for timer in timers:
            if not timer.cancelled():
                timer._when += slept  # type: ignore[attr-defined]
                self._push(timer)

    def crash(self, node: str) -> None:
        """End `node`: nothing of it ever runs again."""
        assert node, "the simulation itself is the node without a name"
        self._crashed.add(node)
        self._paused.discard(node)
        self._asleep.pop(node, None)
        self._queues.pop(node, None)
        self._busy.pop(node, None)
        for task, name in self._tasks.items():
            if name == node and not task.done():
                self._retire(task)
        self._tasks = {task: name for task, name in self._tasks.items() if name != node}

    def _retire(self, task: SimTask[Any]) -> None:
        # asyncio's own switch (see gather): else a pending task is reported when it is freed.
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._graveyard.append(task)

    def cancel_all(self) -> None:
        """Cancel every task that lives, and run until they have ended."""
        for node in list(self._paused):
            self.resume(node)
        self.steps = 0
        tasks = [task for task in self._tasks if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            self.run_until_complete(asyncio.wait(tasks))

    # The loop

    @property
    def world(self) -> float:
        """The virtual time in seconds, whatever the clock of the node that asks shows."""
        return self._now

    def set_clock(self, node: str, clock: Clock) -> None:
        """Give `node` a clock of its own; to be called before anything of it runs."""
        self._clocks[node] = clock

    def time(self) -> float:
        """Return what the clock of the present node shows, by default the virtual time."""
        clock = self._clocks.get(NODE.get())
        return self._now if clock is None else clock.shows(self._now)

    def call_later(
        self,
        delay: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call back after `delay` seconds on the clock of the node that is called back."""
        clock = self._clocks.get(NODE.get() if context is None else context.get(NODE, ""))
        world = self._now + (delay if clock is None else delay / clock.rate)
        return self._push(asyncio.TimerHandle(world, callback, args, self, context))

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call back when the clock of the node that is called back shows `when`.

        The handle's own `when` is in the world's time.
        """
        clock = self._clocks.get(NODE.get() if context is None else context.get(NODE, ""))
        world = when if clock is None else clock.when(when)
        return self._push(asyncio.TimerHandle(world, callback, args, self, context))

    def _push(self, timer: asyncio.TimerHandle) -> asyncio.TimerHandle:
        timer._scheduled = True  # type: ignore[attr-defined]
        heapq.heappush(self._timers, (timer.when(), next(self._ranks), timer))
        return timer

    def _run_once(self) -> None:
        """Run handles until the loop is stopped; where there is none, let time pass."""
        while True:
            if self._timers and self._timers[0][0] <= self._now:
                self._fire_due()
            if self._ready:
                self._deal()
            if self._busy:
                self._run_next()
            elif not self._let_time_pass() and not self._stopping:  # type: ignore[attr-defined]
                raise SimError(
                    f"deadlock at {self.now}: nothing to run, nothing to wait for{self._who()}"
                )
            if self._stopping:  # type: ignore[attr-defined]
                return

    def _deal(self) -> None:
        """Give each node what it is to run."""
        for handle in self._ready:
            node = _node(handle)
            queue = self._queues.get(node)
            if queue is None:
                if node in self._crashed:
                    continue
                queue = self._queues[node] = deque()
                self._rank[node] = next(self._ranks)
            queue.append(handle)
            if node not in self._paused:
                self._busy[node] = self._rank[node]
        self._ready.clear()

    def _run_next(self) -> None:
        """Run a handle of one of the nodes that have any."""
        busy = self._busy
        if len(busy) == 1:
            node = next(iter(busy))
        else:
            node = self._random.choice(sorted(busy, key=busy.__getitem__))
        queue = self._queues[node]
        handle = queue.popleft()
        if not queue:
            del busy[node]
        self.steps += 1
        if self.steps > self._max_steps:
            raise SimError(f"no end after {self.steps} steps, at {self.now}: {handle!r} is next")
        if not handle.cancelled():
            handle._run()

    def _let_time_pass(self) -> bool:
        """Go to the time of the next timer; return whether there is one."""
        timers = self._timers
        if self._timer_cancelled_count > max(PRUNE, len(timers) // 2):
            timers[:] = [entry for entry in timers if not entry[2].cancelled()]
            heapq.heapify(timers)
            self._timer_cancelled_count = 0
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)[2]._scheduled = False  # type: ignore[attr-defined]
            self._timer_cancelled_count -= 1
        if timers:
            self._now = max(self._now, timers[0][0])
        return bool(timers)

    @property
    def now(self) -> str:
        """The virtual time since the start, to be read by people."""
        return f"{self._now - START:.3f} s"

    def _fire_due(self) -> None:
        """Move the timers that are due to the ready handles, in an order drawn from the seed."""
        timers = self._timers
        due: list[asyncio.TimerHandle] = []
        while timers and timers[0][0] <= self._now:
            timer = heapq.heappop(timers)[2]
            timer._scheduled = False  # type: ignore[attr-defined]
            if timer.cancelled():
                self._timer_cancelled_count -= 1
            elif _node(timer) not in self._crashed:
                due.append(timer)
        if len(due) > 1:
            self._random.shuffle(due)
        self._ready.extend(due)

    def _who(self) -> str:
        waiting = sorted({name for task, name in self._tasks.items() if not task.done()})
        return f"; tasks of {waiting} never end; paused: {sorted(self._paused)}"

    def _process_events(self, event_list: list[Any]) -> None:
        """Nothing: there is no I/O."""

    def _write_to_self(self) -> None:
        """Nothing: there are no other threads."""

    def run_in_executor(
        self, executor: object, func: Callable[..., _T], *args: object
    ) -> asyncio.Future[_T]:
        """Call `func` here and now: a thread would run at a time that no seed repeats."""
        future: asyncio.Future[_T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - handed to the code that awaits, as an executor does
            future.set_exception(error)
        return future

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future that hashes the same in every run."""
        future: SimFuture[Any] = SimFuture(loop=self)
        future.serial = next(self._serials)
        return future

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, _T] | Generator[Any, None, _T],
        context: contextvars.Context | None = None,
        name: str | None = None,
    ) -> SimTask[_T]:
        assert isinstance(coro, Coroutine)
        context = context or contextvars.copy_context()
        task: SimTask[_T] = SimTask(coro, loop=loop, name=name, context=context)
        task.serial = next(self._serials)
        node = context.get(NODE, "")
        if node in self._crashed:
            self._retire(task)
            return task
        if len(self._tasks) > self._tasks_limit:
            self._tasks = {task: name for task, name in self._tasks.items() if not task.done()}
            self._tasks_limit = 2 * len(self._tasks) + 256
        self._tasks[task] = node
        return task

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what was not handled, for `run` to raise."""
        self.unhandled.append(context)

    def close(self) -> None:
        """Close the loop, then let the crashed tasks go; what they still try comes to nothing."""
        if self.is_closed():
            return
        super().close()
        for task in self._graveyard:
            _close(task.get_coro())
        self._graveyard.clear()
        self._tasks.clear()
        self._queues.clear()


def _close(coro: object) -> None:
    """Close a suspended coroutine from the inside out: its parts are never freed suspended."""
    for _ in range(PRUNE):
        inner = coro
        while (awaited := getattr(inner, "cr_await", None)) is not None:
            if getattr(awaited, "cr_frame", None) is None:
                break
            inner = awaited
        if not isinstance(inner, Coroutine) or getattr(inner, "cr_frame", None) is None:
            return
        # A cleanup that awaits ignores GeneratorExit, once per await; a group of tasks adds it to
        # what they raised.
        with suppress(Exception, asyncio.CancelledError, BaseExceptionGroup):
            inner.close()


def _node(handle: asyncio.Handle) -> str:
    context: contextvars.Context = handle._context  # type: ignore[attr-defined]
    return context.get(NODE, "")


def run(main: Coroutine[Any, Any, _T], *, seed: int = 0, max_steps: int = MAX_STEPS) -> _T:
    """Run `main` on a loop of its own, as `asyncio.run` does; the loop is closed at the end.

    Raises `SimError` on a deadlock, after `max_steps`, or for an exception that was not handled.
    """
    loop = SimLoop(seed, max_steps)
    try:
        try:
            result = loop.run_until_complete(main)
        finally:
            loop.cancel_all()
    finally:
        loop.close()
    for context in loop.unhandled:
        raise SimError(f"unhandled: {context.get('message')}") from context.get("exception")
    return result


@overload
def virtual(test: Callable[_P, Coroutine[Any, Any, None]], /) -> Callable[_P, None]: ...


@overload
def virtual(
    *, seeds: int = 1
) -> Callable[[Callable[_P, Coroutine[Any, Any, None]]], Callable[_P, None]]: ...


def virtual(
    test: Callable[_P, Coroutine[Any, Any, None]] | None = None, /, *, seeds: int = 1
) -> Callable[_P, None] | Callable[[Callable[_P, Coroutine[Any, Any, None]]], Callable[_P, None]]:
    """Make an async test run in virtual time, once for each of `seeds` seeds.

    It may take sync fixtures, and stand under `@given`; an async fixture would have another loop.
    """

    def decorate(test: Callable[_P, Coroutine[Any, Any, None]]) -> Callable[_P, None]:
        @functools.wraps(test)
        def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> None:
            for seed in range(seeds):
                try:
                    run(test(*args, **kwargs), seed=seed)
                except BaseException as error:
                    error.add_note(f"on a virtual loop with seed {seed}")
                    raise

        return wrapper

    return decorate if test is None else decorate(test)
