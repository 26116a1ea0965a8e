"""A pool of guards for commands that run side by side: started on demand, ended when idle.

A guard owns one command at a time, and its interpreter takes 20 ms to start. So a guard whose
command has ended waits `linger` seconds for the next one, which then starts in 3 ms; after that it
ends. While no command runs, there is no process and no timer (docs/decisions/0100).

Invariants: at most `most` commands run at the same time, others wait; a guard that is lent owns no
command; every guard process is in `pids` from before it starts until it has been awaited.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from typing import Self

from kontrol.process.guard import Guard

LINGER = 30.0  # seconds


class Guards:
    """Up to `most` guards. An asynchronous context manager: its end ends all of them.

    `known` returns the ids of the children of this process that are awaited elsewhere: see `Guard`.
    """

    def __init__(
        self,
        *,
        most: int,
        linger: float = LINGER,
        known: Callable[[], Collection[int]] | None = None,
    ) -> None:
        self._linger = linger
        self._known = known
        self._room = asyncio.Semaphore(most)
        self._all: set[Guard] = set()
        self._idle: dict[Guard, asyncio.TimerHandle] = {}  # the one used last comes last
        self._retiring: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def pids(self) -> frozenset[int]:
        """The ids of the guard processes."""
        return frozenset(guard.pid for guard in self._all if guard.pid is not None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        for timer in self._idle.values():
            timer.cancel()
        self._idle.clear()
        for guard in self._all:
            self._retire(guard)
        while self._retiring:
            await asyncio.wait(self._retiring)

    @contextlib.asynccontextmanager
    async def guard(self) -> AsyncIterator[Guard]:
        """Lend a guard, a new one if none is idle. Raises `GuardError` if it cannot start."""
        async with self._room:
            guard = await self._take()
            try:
                yield guard
            finally:
                self._give_back(guard)

    async def _take(self) -> Guard:
        if self._idle:
            guard, timer = self._idle.popitem()
            timer.cancel()
            return guard
        guard = Guard(known=None if self._known is None else self._children)
        self._all.add(guard)
        try:
            await guard.start()
        except BaseException:
            self._retire(guard)  # when cancelled, it may have started all the same
            raise
        return guard

    def _give_back(self, guard: Guard) -> None:
        if guard.busy or self._closing:
            self._retire(guard)
        else:
            loop = asyncio.get_running_loop()
            self._idle[guard] = loop.call_later(self._linger, self._retire_idle, guard)

    def _retire_idle(self, guard: Guard) -> None:
        del self._idle[guard]
        self._retire(guard)

    def _retire(self, guard: Guard) -> None:
        task = asyncio.create_task(self._end(guard))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _end(self, guard: Guard) -> None:
        await guard.close()
        self._all.discard(guard)

    def _children(self) -> Collection[int]:
        return self.pids if self._known is None else {*self._known(), *self.pids}
