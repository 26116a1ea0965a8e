"""Conflicting senders: keepalives that exclude each other. Pure.

There are two kinds, recorded for people to see. In a *conflict* one sender has the registration,
and another one that keeps reporting is refused as `Stale` or `Conflict`. In a *flip* both are
accepted in turn: without a nonce and a counter the last write wins, and an id is wherever it was
reported last. So one pod that reports under two names, or to one tier by two names, changes the
ensemble with each keepalive. No decision depends on either.

`Retries` tells a process that keeps reporting a refused record from a message that comes late.
Everything here is bounded.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace

_CONFLICTS = 1000  # that are remembered
_FLIPS = 20_000  # ids whose last two writers are remembered
_FLIPPING = 4  # turns in a row: no restart and no move does that
_RETRIES = 20_000  # processes with refused keepalives that are remembered
_TRIES = 3  # keepalives, over at least TTL/4: a late message does not do that


@dataclass(frozen=True, slots=True)
class Sender:
    """The sender of a keepalive, by its connection: nothing in a record proves anything.

    `address` is an IP address, `connection` distinguishes those of one address, and `key` is how
    the sender's public key begins, empty where no keys are used.
    """

    address: str = ""
    connection: str = ""
    key: str = ""

    def __str__(self) -> str:
        return f"{self.address} (agent key {self.key})" if self.key else self.address


UNKNOWN = Sender()


@dataclass(frozen=True, slots=True)
class Claim:
    """A record that was reported for a registration, last seen `seen` seconds before it was noted.

    `sender` is the text of its sender, empty if unknown.
    """

    id: str
    key: str
    ip: str
    nonce: str
    n: int | None
    sender: str
    seen: float = 0.0

    def __str__(self) -> str:
        order = f"nonce {self.nonce}/{self.n}" if self.nonce else "no nonce"
        by = f"from {self.sender}" if self.sender else "from an unknown address"
        return f"pod {self.id} at {self.ip} (key {self.key}, {order}) {by}"


@dataclass(frozen=True, slots=True)
class Conflict:
    """`refused` reports what `holder` has; times are the loop's, in seconds.

    `times` counts refusals since `since`. The last one, with the error `name`, was at `at`.
    """

    refused: Claim
    holder: Claim
    name: str
    since: float
    at: float
    times: int = 1


class Conflicts:
    """The conflicts that this master sees."""

    def __init__(self) -> None:
        self._conflicts: OrderedDict[tuple[str, str, str], Conflict] = OrderedDict()

    def note(self, refused: Claim, holder: Claim, name: str, now: float, ttl: float) -> None:
        """Note that a sender that keeps reporting was refused. Times in seconds."""
        process = (refused.key, refused.id, refused.nonce)
        before = self._conflicts.pop(process, None)
        conflict = Conflict(refused, holder, name, now, now)
        if before is not None and now - before.at <= ttl:
            conflict = replace(conflict, since=before.since, times=before.times + 1)
        self._conflicts[process] = conflict
        if len(self._conflicts) > _CONFLICTS:
            self._conflicts.popitem(last=False)

    def over(self, key: str, id_: str, nonce: str) -> None:
        """Note that this process has the registration now."""
        if self._conflicts:
            self._conflicts.pop((key, id_, nonce), None)

    def lasting(self, now: float, ttl: float) -> list[Conflict]:
        """Return those whose refused sender reported within a TTL, the longest first."""
        lasting = [each for each in self._conflicts.values() if now - each.at <= ttl]
        return sorted(lasting, key=lambda each: each.since)


@dataclass(frozen=True, slots=True)
class Flip:
    """The last two senders of an id: `last` wrote at the loop time `at`, after `before`.

    `marks` distinguish their records; `times` counts how often they took turns, and `turned` is
    whether the last write was such a turn.
    """

    last: Claim
    before: Claim | None
    marks: tuple[object, object]
    connections: tuple[Sender, Sender | None]
    times: int
    at: float
    turned: bool = False

    @property
    def flipping(self) -> bool:
        """Whether the two take turns: neither a restart nor a move."""
        return self.times >= _FLIPPING


class Flips:
    """Ids that two senders write in turn."""

    def __init__(self) -> None:
        self._flips: OrderedDict[str, Flip] = OrderedDict()

    def wrote(self, claim: Claim, mark: object, sender: Sender, now: float, ttl: float) -> Flip:
        """Note that a record was written over another; `mark` is the same for equal ones.

        Returns the last two senders of this id. Times in seconds.
        """
        known = self._flips.pop(claim.id, None)
        if known is None:
            flip = Flip(claim, None, (mark, None), (sender, None), 0, now)
        elif mark == known.marks[0]:
            connections = (sender, known.connections[1])
            flip = replace(known, last=claim, connections=connections, at=now, turned=False)
        else:
            back = mark == known.marks[1] and now - known.at <= ttl
            # One connection is one process, which may change its record back and forth.
            turned = back and not (sender.connection and sender == known.connections[0])
            flip = Flip(
                claim,
                known.last,
                (mark, known.marks[0]),
                (sender, known.connections[0]),
                known.times + 1 if turned else 0,
                now,
                turned,
            )
        self._flips[claim.id] = flip
        if len(self._flips) > _FLIPS:
            self._flips.popitem(last=False)
        return flip

    def lasting(self, now: float, ttl: float) -> list[Flip]:
        """Return those that went on within a TTL."""
        return [each for each in self._flips.values() if each.flipping and now - each.at <= ttl]


class Retries:
    """The processes whose keepalives are refused, each by its key, id and nonce."""

    def __init__(self) -> None:
        # First and last time, and how often; in the order of the last.
        self._tries: OrderedDict[tuple[str, str, str], tuple[float, float, int]] = OrderedDict()

    def add(self, process: tuple[str, str, str], now: float, ttl: float) -> bool:
        """Note a refused keepalive; returns whether its process keeps reporting.

        Times in seconds. A process without one for a TTL is forgotten.
        """
        while self._tries and now - next(iter(self._tries.values()))[1] > ttl:
            self._tries.popitem(last=False)
        first, _, times = self._tries.pop(process, (now, now, 0))
        self._tries[process] = first, now, times + 1
        if len(self._tries) > _RETRIES:
            self._tries.popitem(last=False)
        return times + 1 >= _TRIES and now - first >= ttl / 4
