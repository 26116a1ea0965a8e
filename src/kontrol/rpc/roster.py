"""The connections of a server, and which of them end when there are too many. Pure.

When there is no room for a newcomer, the connection that has said nothing for longest ends, of the
newcomer's address or of all. Agents report every few seconds: a crowd of idle connections cannot
keep them out or push them out, as it could if newcomers were refused. First those that have not
completed their handshake end, the oldest of them; never one with a call in progress, of which there
are few (`Limits.calls`). Where only such are left, the newcomer is refused.

A queue is not reordered when its members speak: its head is, if it has spoken meanwhile, when the
head is asked for. So a message costs nothing here.
"""

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from kontrol.rpc.limits import Limits


class Member(Protocol):
    """A connection: its peer's address, when it last said something, and whether calls are open."""

    address: str
    heard: float

    @property
    def busy(self) -> bool:
        """Whether calls are in progress."""
        ...


M = TypeVar("M", bound=Member)

_Queue = dict[M, float]
"""Members in order, with the time at which they had last spoken when they were put there."""


class Roster(Generic[M]):
    """The members, within `limits`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._new: _Queue[M] = {}
        self._met: _Queue[M] = {}
        self._of: dict[str, _Queue[M]] = {}

    def __len__(self) -> int:
        return len(self._new) + len(self._met)

    def __iter__(self) -> Iterator[M]:
        return iter((*self._new, *self._met))

    def admit(self, newcomer: M) -> list[M] | None:
        """Add a newcomer; return the members that have to go, or None if it is refused."""
        limits = self._limits
        gone: list[M] = []
        same = self._of.get(newcomer.address, {})
        if len(same) >= limits.per_address and not self._evict(same, gone):
            return None
        if len(self._new) >= limits.handshakes:
            self._evict(self._new, gone)
        if len(self) >= limits.connections and not self._evict(self._new or self._met, gone):
            return None
        self._new[newcomer] = newcomer.heard
        self._of.setdefault(newcomer.address, {})[newcomer] = newcomer.heard
        return gone

    def make_room(self) -> list[M]:
        """Return the member that has to go, if any, when the system has no room for more."""
        gone: list[M] = []
        self._evict(self._new or self._met, gone)
        return gone

    def met(self, member: M) -> None:
        """Record that a member has completed its handshake."""
        if self._new.pop(member, None) is not None:
            self._met[member] = member.heard
            same = self._of[member.address]
            del same[member]
            same[member] = member.heard

    def remove(self, member: M) -> None:
        """Take a member out, if it is there."""
        self._new.pop(member, None)
        self._met.pop(member, None)
        same = self._of.get(member.address)
        if same is not None and same.pop(member, None) is not None and not same:
            del self._of[member.address]

    def _evict(self, queue: _Queue[M], gone: list[M]) -> bool:
        """Take the idlest of a queue out; return False if there is none."""
        member = _idlest(queue)
        if member is None:
            return False
        self.remove(member)
        gone.append(member)
        return True


def _idlest(queue: _Queue[M]) -> M | None:
    """Return who has said nothing for longest and has no call in progress."""
    for _ in range(len(queue)):
        member = next(iter(queue))
        if not member.busy and member.heard <= queue[member]:
            return member
        del queue[member]
        queue[member] = member.heard
    # All have spoken since they were put where they are: each step here is paid by a message.
    in_order = sorted(queue, key=lambda member: member.heard)
    queue.clear()
    queue.update((member, member.heard) for member in in_order)
    return next((member for member in in_order if not member.busy), None)
