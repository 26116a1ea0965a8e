"""The fence: of each tier, commands of the highest term seen run, and of no lower one. Pure.

A leader that lost its office may not know yet, or may have left commands running. So a call made
from within a callback carries its tier and term; a lower term than the highest seen is refused, and
who raises it ends what runs of the lower ones first (`kontrol.agent.commands.executor`).

Invariant: the highest term of a tier never falls. It is kept in memory: a restart of the agent ends
all its commands, and forgets it.
"""

from kontrol.agent.commands.request import Mandate
from kontrol.rpc.errors import Refused

MOST_TIERS = 1024
"""Tiers that are remembered. None is ever forgotten, since that would open its fence."""


class Fence:
    """The highest term of each tier."""

    def __init__(self) -> None:
        self._highest: dict[str, int] = {}

    def admit(self, mandate: Mandate) -> None:
        """Remember the term, or raise `Refused` if a higher one has been seen."""
        highest = self._highest.get(mandate.tier)
        if highest is not None and mandate.term < highest:
            raise Refused(
                "Fenced",
                f"term {mandate.term} of tier {mandate.tier!r} is over: term {highest} has called"
                " here; end this callback, its leader has been replaced",
            )
        if highest is None and len(self._highest) >= MOST_TIERS:
            raise Refused(
                "Busy",
                f"tier {mandate.tier!r:.80} would be the {MOST_TIERS + 1}th here: if so many are"
                " none of yours, set KONTROL_KEYS; restart the agent to forget them",
            )
        self._highest[mandate.tier] = mandate.term
