"""Judges a history by the invariants of the design (section 12): 1 to 13, 8 in part.

Each check is a pure function from a history to complaints; an empty list is a pass. They know the
contract and the layout of the store, and share no logic with the masters: what changed is worked
out from what callbacks were given, who left from what agents said.
"""

from collections.abc import Callable, Iterator

from tests.simulation.checks import (
    desired,
    holds,
    live,
    pods,
    published,
    records,
    runs,
    silence,
    timed,
)
from tests.simulation.history import Failure, History

CHECKS: dict[str, Callable[[History], Iterator[str]]] = {
    "1 no overlap": runs.no_overlap,
    "2 no change is lost": runs.nothing_lost,
    "3 no needless run": runs.nothing_needless,
    "4 state, term and run": runs.state_moves_by_runs,
    "5 one seq, newest record": pods.numbers_and_order,
    "6 no reporting pod dropped": pods.reporting_pods_stay,
    "6 who asks is taken": pods.who_asks_is_taken,
    "6 gap": holds.silence_of_the_tier,
    "7 silent pods go": pods.silent_pods_go,
    "9 true changes": pods.true_changes,
    "9 true lists": runs.true_lists,
    "9 registrations stay": pods.registrations_stay,
    "10 the brake holds": holds.brake_holds,
    "10 nothing waits forever": holds.on_time,
    "11 rollbacks": records.rolled_back_once,
    "12 as it asked": timed.asked_is_committed,
    "12 never early": timed.never_early,
    "13 published under the fence": published.fenced,
    "13 published versions rise": published.only_rise,
    "13 as was told": published.answered,
    "13 the latest everywhere": published.latest_everywhere,
    "14 told before lost": silence.told_before_lost,
    "14 hooks in order": silence.in_order,
    "12 desired, made once": desired.made_once,
    "12 desired, seen by a run": desired.seen_by_a_run,
    "live facts are seen": live.seen_by_runs,
    "live facts of their pods": live.of_their_pods,
    "damper": holds.damper_waits,
    "unknown fields": records.unknown_fields_stay,
}


def check(history: History) -> list[str]:
    """Return every complaint about a history."""
    complaints = [f"invariant {name}: {text}" for name, f in CHECKS.items() for text in f(history)]
    return complaints + [f"invariant 8 masters live and end: {text}" for text in failures(history)]


def failures(history: History) -> Iterator[str]:
    """8: no master dies by itself, and each ends when it is told to."""
    for entry in history:
        if isinstance(entry, Failure):
            yield f"{entry.node} at {entry.at:.3f}: {entry.why}"
