"""The leader: what a master needs for leading, and the term that it leads, if it does.

All that must not outlive a term belongs to its `Leadership`: the brake and its release, what was
answered, the plan. What is kept here, for the life of the process, decides nothing.
"""

import asyncio

from kontrol.master.leader import policy
from kontrol.master.leader.leadership import Leadership, Parts
from kontrol.master.term import Term


class Leader:
    """Leads while `lead` runs; at other times it knows no plan."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._news = asyncio.Event()
        self._leadership: Leadership | None = None
        parts.election.on_change(self.wake)
        parts.mirror.cache.listen(lambda _: self.wake())
        parts.requests.on_change(self.wake)

    def wake(self) -> None:
        """Tell that something changed that may change the decision."""
        self._news.set()
        if self._leadership is not None:
            self._leadership.changed()

    @property
    def plan(self) -> policy.Idle | policy.Wait | policy.Run:
        """What this master is about to do as the leader."""
        return policy.Idle() if self._leadership is None else self._leadership.plan

    @property
    def waiting_since(self) -> float | None:
        """The loop time of the oldest change that no run was acknowledged for, as the leader."""
        return None if self._leadership is None else self._leadership.waiting_since

    async def lead(self, term: Term) -> None:
        """Lead until cancelled. Raises `Deposed`, `Outdated`, `StoreError`."""
        self._leadership = Leadership(term, self._parts, self._news)
        try:
            await self._leadership.run()
        finally:
            self._leadership = None
