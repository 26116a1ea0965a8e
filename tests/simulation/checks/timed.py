"""Runs at their time, 12: as the last one asked, and every so often; never early, never of losses.

That they are never lost, `holds.on_time` judges.
"""

import json
from collections.abc import Iterator

from tests.simulation.checks.holds import SKEW
from tests.simulation.health import Health
from tests.simulation.history import KEYS, Commit, Ended, History, Started, StoreView, written

TIMED = ("again", "schedule")


def asked_is_committed(history: History) -> Iterator[str]:
    """12: with a run, and no other, is committed what it asked for and its note."""
    ended: dict[int, Ended] = {}
    for entry in history:
        if isinstance(entry, Ended):
            ended[entry.run] = entry
        raw = written(entry, KEYS.applied) if isinstance(entry, Commit) else None
        if raw is not None:
            head = json.loads(raw)
            left, ending = (head.get("again"), head.get("note")), ended.get(head["run"])
            if ending is not None and left != (ending.again, ending.note):
                yield f"run {head['run']} left {ending.again, ending.note}, committed is {left}"


def never_early(history: History) -> Iterator[str]:
    """12: such a run is that long after the last acknowledged one, and tells no pod lost."""
    view, health = StoreView(), Health()
    acknowledged: dict[bytes, float] = {}  # when each record of the last acknowledged run was put
    for entry in history:
        health.apply(entry)
        if isinstance(entry, Commit) and (raw := written(entry, KEYS.applied)) is not None:
            acknowledged[raw] = entry.at
        if isinstance(entry, Started):
            running = view.running or {}
            if running.get("run") == entry.run and running.get("reason") in TIMED:
                lost = [pod["id"] for pod in json.loads(entry.given)["lost"]]
                if lost:
                    yield f"run {entry.run}, due at its time, tells {lost} lost"
                yield from _early(entry, str(running["reason"]), view, health, acknowledged)
        view.apply(entry)


def _early(
    run: Started, reason: str, view: StoreView, health: Health, acknowledged: dict[bytes, float]
) -> Iterator[str]:
    kv = view.raw.get(KEYS.applied)
    applied = view.applied or {}
    after = applied.get("again") if reason == "again" else health.settings[run.node].every
    if not after:
        yield f"run {run.run} at {run.at:.3f} is due for {reason}, which nothing asked for"
    elif kv is None:  # nothing was acknowledged yet: counted from when the master started
        if health.since_start(run.node, run.at) < after / SKEW:
            yield f"run {run.run} at {run.at:.3f} comes less than {after:g} s after the start"
    elif run.at - acknowledged[kv.value] < after / SKEW:
        passed = run.at - acknowledged[kv.value]
        yield f"run {run.run} for {reason} comes {passed:.3f} s after the last, not {after:g} s"
