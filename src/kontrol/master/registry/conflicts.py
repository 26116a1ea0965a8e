"""Conflicting senders: keepalives that exclude each other, recorded for people to see. Pure.

There are two kinds. In a *conflict* one sender has the registration, and another one that keeps
asking for it is refused as `Stale` or `Conflict`. In a *flip* both are accepted in turn: without a
nonce and a counter the last write wins, and an id is wherever it was reported last. So one pod that
reports under two names, or to one tier by two names, changes the ensemble with each keepalive.

No decision depends on what is recorded here, and all of it is bounded.
"""

import logging
from collections import OrderedDict
from dataclasses import dataclass, replace

log = logging.getLogger(__name__)

_CONFLICTS = 1000  # that are remembered
_FLIPS = 20_000  # ids whose last two writers are remembered
_FLIPPING = 4  # changes to and fro in a row: no restart and no move does that


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sent a keepalive, by its connection: nothing in a record proves anything.

    `address` is an IP address, `connection` tells those of one address apart, and `key` is how the
    sender's public key begins, empty where no keys are used.
    """

    address: str = ""
    connection: str = ""
    key: str = ""

    def __str__(self) -> str:
        return f"{self.address} (agent key {self.key})" if self.key else self.address


NOBODY = Sender()


@dataclass(frozen=True, slots=True)
class Claim:
    """A record that was reported for a registration, last seen `heard` seconds before it was noted.

    `sender` is the text of its sender, empty if unknown.
    """

    id: str
    key: str
    ip: str
    nonce: str
    n: int | None
    sender: str
    heard: float = 0.0

    def __str__(self) -> str:
        order = f"nonce {self.nonce}/{self.n}" if self.nonce else "no nonce"
        by = f"from {self.sender}" if self.sender else "from an unknown address"
        return f"pod {self.id} at {self.ip} (key {self.key}, {order}) {by}"


@dataclass(frozen=True, slots=True)
class Conflict:
    """`refused` asks for what `holder` has; times are the loop's, in seconds.

    `times` counts refusals since `since`, of which the last, with the error `name`, was at `at`.
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
        """Note that a sender that keeps asking was refused."""
        who = (refused.key, refused.id, refused.nonce)
        before = self._conflicts.pop(who, None)
        conflict = Conflict(refused, holder, name, now, now)
        if before is not None and now - before.at <= ttl:
            conflict = replace(conflict, since=before.since, times=before.times + 1)
        self._conflicts[who] = conflict
        if len(self._conflicts) > _CONFLICTS:
            self._conflicts.popitem(last=False)

    def over(self, key: str, id_: str, nonce: str) -> None:
        """Note that this sender has the registration now."""
        if self._conflicts:
            self._conflicts.pop((key, id_, nonce), None)

    def standing(self, now: float, ttl: float) -> list[Conflict]:
        """Return those whose refused sender asked within a TTL, the longest first."""
        standing = [each for each in self._conflicts.values() if now - each.at <= ttl]
        return sorted(standing, key=lambda each: each.since)


@dataclass(frozen=True, slots=True)
class Flip:
    """The last two senders of an id: `last` wrote at the loop time `at`, after `before`.

    `marks` tell their records apart; `times` counts how often they took turns.
    """

    last: Claim
    before: Claim | None
    marks: tuple[object, object]
    connections: tuple[Sender, Sender | None]
    times: int
    at: float


class Flips:
    """Notes ids that two senders write in turn, and logs them."""

    def __init__(self) -> None:
        self._flips: OrderedDict[str, Flip] = OrderedDict()

    def wrote(self, claim: Claim, mark: object, sender: Sender, now: float, ttl: float) -> bool:
        """Note that a record was written over another; `mark` is the same for equal ones.

        Returns whether two senders take turns.
        """
        known = self._flips.pop(claim.id, None)
        if known is None:
            flip = Flip(claim, None, (mark, None), (sender, None), 0, now)
        elif mark == known.marks[0]:
            flip = replace(known, last=claim, connections=(sender, known.connections[1]), at=now)
        else:
            back = mark == known.marks[1] and now - known.at <= ttl
            # One connection is one process, which may change its mind to and fro.
            turns = back and not (sender.connection and sender == known.connections[0])
            flip = Flip(
                claim,
                known.last,
                (mark, known.marks[0]),
                (sender, known.connections[0]),
                known.times + 1 if turns else 0,
                now,
            )
            if turns:
                _log(flip)
        self._flips[claim.id] = flip
        if len(self._flips) > _FLIPS:
            self._flips.popitem(last=False)
        return flip.times >= _FLIPPING

    def standing(self, now: float, ttl: float) -> list[Flip]:
        """Return those that went on within a TTL."""
        flips = self._flips.values()
        return [each for each in flips if each.times >= _FLIPPING and now - each.at <= ttl]


def _log(flip: Flip) -> None:
    if flip.times >= _FLIPPING and flip.times & (flip.times - 1) == 0:  # 4, 8, 16...
        log.warning(
            "the record of pod %s changed to and fro %d times, and the ensemble with it: two "
            "processes report under one id, or one reports to this tier under two names: %s; %s",
            flip.last.id,
            flip.times,
            flip.last,
            flip.before,
        )
