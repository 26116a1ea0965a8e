"""Answers that are waited for, with one timer for all of them."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

_Answer = TypeVar("_Answer")


class Waiting(Generic[_Answer]):
    """Futures, each with a deadline; `late` is called with those that are not done by then.

    They are kept in the order in which they came. So where a later one has the earlier deadline, it
    is late by up to the difference.
    """

    def __init__(self, late: Callable[["asyncio.Future[_Answer]"], None]) -> None:
        self._late = late
        self._waiting: deque[tuple[float, asyncio.Future[_Answer]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, timeout: float) -> "asyncio.Future[_Answer]":
        """Return a future that is to be done within `timeout` seconds."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting
        while waiting and waiting[0][1].done():
            waiting.popleft()
        answer: asyncio.Future[_Answer] = loop.create_future()
        deadline = loop.time() + timeout
        waiting.append((deadline, answer))
        if self._timer is None:
            self._timer = loop.call_at(deadline, self._expire)
        return answer

    def _expire(self) -> None:
        """Refuse those whose time is over, and wait for the next of the others."""
        loop = asyncio.get_running_loop()
        now, self._timer = loop.time(), None
        while self._waiting:
            deadline, answer = self._waiting[0]
            if not answer.done():
                if deadline > now:
                    self._timer = loop.call_at(deadline, self._expire)
                    return
                self._late(answer)
            self._waiting.popleft()
