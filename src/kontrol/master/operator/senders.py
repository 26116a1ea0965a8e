"""What one master sees of those who report to it: pure judgements, in words."""

from collections.abc import Sequence

from kontrol.master.operator.facts import Problem
from kontrol.master.registry.quota import Limited
from kontrol.master.registry.rivals import Contest, Flip

_RIVALS = 5  # of each kind, that are told one by one
_ADDRESSES = 3  # likewise


def of_the_senders(
    contests: Sequence[Contest], flips: Sequence[Flip], limited: Sequence[Limited]
) -> list[Problem]:
    """Name the senders that compete for a seat, and those that met a bound."""
    return _of_the_bounds(limited) + _of_the_rivals(contests, flips)


def _of_the_rivals(contests: Sequence[Contest], flips: Sequence[Flip]) -> list[Problem]:
    """Name both senders of each seat that two compete for."""
    found = [
        Problem(
            f"two senders compete for one seat. Refused as {each.name}, {each.times} times: "
            f"{each.refused}. It has the seat, and was heard {each.holder.heard:.0f} s before: "
            f"{each.holder}",
            "stop the one that should not report (with keys, take the key that it uses from the "
            "masters' folder); the other one is then taken within KONTROL_TTL, or at once after "
            f"`kontrol forget {each.holder.key}`",
            kind="two-senders",
        )
        for each in contests[:_RIVALS]
    ]
    found += [
        Problem(
            f"the record of pod {each.last.id} changed to and fro {each.times} times, and the "
            f"ensemble with it: {each.last}; {each.before}",
            "two processes report under one id, or one reports to this tier under two names: stop "
            "one, or name the tier once",
            kind="two-senders",
        )
        for each in flips[:_RIVALS]
    ]
    more = len(contests) + len(flips) - len(found)
    if more:
        what = f"{more} more seats have two senders"
        found.append(Problem(what, "see the masters' logs", kind="two-senders"))
    return found


def _of_the_bounds(limited: Sequence[Limited]) -> list[Problem]:
    """Name the bounds that pods are refused for."""
    found = []
    for each in limited:
        by = ", ".join(f"{who or '?'} ({n})" for who, n in each.by.most_common(_ADDRESSES))
        found.append(
            Problem(
                f"pods are refused as {each.name}, {each.times} times so far, from {by}. The last: "
                f"{each.why}",
                "if these pods are yours, raise the setting; if not, keep that address out, and "
                "give the tier keys (`kontrol keys`), so that strangers can report nothing",
                kind="bound-reached",
            )
        )
    return found
