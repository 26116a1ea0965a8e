"""What the status consists of, and how its parts are made to agree with each other. Pure.

`Facts` is what problems are found in, and `Problem` is what is found. The leader publishes its plan
only when it has lasted for half a second, so the plan may lag behind the records that are read with
it. Then the records count; the plan adds what they cannot show: what holds a run that is due, until
when, and which pods are lost.
"""

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from kontrol.ensemble.canonical import JSON
from kontrol.master.records.masters import Candidate
from kontrol.master.records.runs import Head, Running
from kontrol.master.registry.conflicts import Conflict, Flip
from kontrol.master.registry.quota import Limited


@dataclass(frozen=True, slots=True)
class Facts:
    """What problems are found in: the status as read at one moment.

    etcd: the error that it gives to this master, empty if none; `alarms` are those it has raised,
    `revision` is its current one.
    Masters: `candidates` campaign, the leader first; `refuses`: the leader's host refuses
    connections to its port.
    Durations are in seconds, None if there is none or it is not known: `silent` since the leader
    last reported, `waiting` since the oldest change for which no run has begun, `usual` of an
    acknowledged run (the median), `damper_max` is KONTROL_DAMPER_MAX.
    Runs: `runs` are entries of the ledger, the newest first; `applied` is the last acknowledged.
    Pods: `conflicts` and `flips` are senders that report for one registration, as this master sees
    them; `limited` are the limits that keepalives met just now; `left_out` are the keys of records
    that cannot be used; `notices` are the problems that other masters have published.
    """

    etcd: str
    alarms: Sequence[str]
    revision: int
    leader: Mapping[str, JSON] | None
    candidates: Sequence[Candidate]
    plan: Mapping[str, JSON]
    running: Mapping[str, JSON] | None
    pods: int
    silent: float | None = None
    refuses: bool = False
    waiting: float | None = None
    usual: float | None = None
    damper_max: float = 60.0
    runs: Sequence[Mapping[str, JSON]] = ()
    now: datetime | None = None
    conflicts: Sequence[Conflict] = ()
    flips: Sequence[Flip] = ()
    left_out: Collection[str] = ()
    limited: Sequence[Limited] = ()
    max_pods: int | None = None
    notices: Sequence["Problem"] = ()
    applied: Head | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and how to fix it; `kind` is for programs, listed in the documentation."""

    what: str
    fix: str
    kind: str = "other"


# Seconds. A leader reports twice a second, and the age of its lease is rounded up by one second.
_SILENT = 3.0

_INTERNAL = ("at", "acknowledged")  # of a published plan: for what is computed here
_NOTHING: dict[str, JSON] = {"reason": None, "hold": None, "seconds": None, "until": None}


def reports(candidates: Sequence[Candidate], *, silent: float | None, refuses: bool) -> bool:
    """Return whether the first candidate, the leader, reports; the arguments: see `Facts`.

    One that campaigns a second time has restarted, or lost its term.
    """
    ids = [each.id for each in candidates]
    restarted = ids[:1] and ids[0] in ids[1:]
    return not (refuses or restarted or (silent is not None and silent >= _SILENT))


def due(
    applied: Head | None,
    running: Running | None,
    *,
    digest: str,
    none: str,
    fingerprint: str,
    desired: bool = False,
) -> str | None:
    """Return why a run is due, None if none is.

    `digest` is that of the pods now and `none` that of no pods; `fingerprint` is that of the
    leader's callback, empty if it has none: then nothing is ever due. `desired`: the desired state
    is another than that of `applied`.
    """
    if not fingerprint:
        return None
    if digest != (applied.digest if applied else none):
        return "ensemble"
    if running is not None and running.ended:
        return "unacknowledged"
    if desired:
        return "spec"
    if applied is not None and applied.fingerprint not in (None, fingerprint):
        return "callback"
    return None


def plan_now(
    published: Mapping[str, JSON] | None,
    running: Running | None,
    applied: Head | None,
    *,
    under_way: bool,
    reason: str | None,
    quiet: float | None,
    now: datetime,
) -> dict[str, JSON]:
    """Return the leader's plan, corrected by what the records show now.

    `published` is what the leader published, None if nothing; `under_way`: `running` is that of a
    leader that reports, and was not left by a former one; `reason` is why a run is due, see `due`;
    `quiet` are the seconds for which the damper still waits, None if it does not. A plan that is
    idle has the reason of the next run that comes at its time, and the seconds until then, if any.
    """
    if published is None:
        if running is None or running.ended or under_way:
            return {"what": "unknown"}
        published = {}
    plan = {name: value for name, value in published.items() if name not in _INTERNAL}
    if running is not None and under_way:
        return {**plan, **_NOTHING, "what": "run", "reason": running.reason}
    if running is not None and not running.ended:
        reason, quiet = "unacknowledged", None
        if plan.get("hold") != "predecessor":
            return {**plan, **_NOTHING, "what": "wait", "reason": reason, "hold": "predecessor"}
    if reason is None and plan.get("reason") != "asked":
        idle = {**plan, **_NOTHING, "what": "idle", "lost": [], "missing": 0, "of": 0}
        return {**idle, **_timed(published, applied, now)}
    over = running is None or running.ended  # the leader has recorded the end of an earlier one
    stale = plan.get("hold") == "damper" or (over and plan.get("hold") == "predecessor")
    if plan.get("what") == "idle" or stale:
        plan |= {**_NOTHING, "what": "run", "reason": reason or plan.get("reason")}
        if quiet and reason != "spec" and (seconds := round(quiet, 1)):
            plan |= {"what": "wait", "hold": "damper", "seconds": seconds}
    else:
        plan["seconds"] = _left(plan.get("seconds"), published.get("at"), now)
    plan["until"] = _until(plan["seconds"], now)
    return plan


def _timed(published: Mapping[str, JSON], applied: Head | None, now: datetime) -> dict[str, JSON]:
    """Return the reason and the time of the next run that needs no change; nothing if none is due.

    What was published before the last acknowledgement is not about that.
    """
    reason, seconds = published.get("reason"), published.get("seconds")
    known = published.get("acknowledged")  # None from a leader of the version before
    if published.get("what") == "idle" and known in (None, applied.run if applied else 0):
        seconds = _left(seconds, published.get("at"), now)
    else:
        again = None if applied is None else applied.again
        reason, seconds = (None, None) if again is None else ("again", again)
    return {"reason": reason, "seconds": seconds, "until": _until(seconds, now)}


def usual(entries: Iterable[Mapping[str, JSON]]) -> float | None:
    """Return the median duration of acknowledged runs, in seconds; None if there was none."""
    took = [
        seconds
        for entry in entries
        if entry.get("ok") is True and entry.get("reason") != "rollback"
        if isinstance(seconds := entry.get("seconds"), int | float)
    ]
    return statistics.median(took) if took else None


def passed(since: JSON, now: datetime) -> float | None:
    """Return the seconds since a date and time, None if it is none. For people: clocks differ."""
    try:
        return max(0.0, (now - datetime.fromisoformat(str(since))).total_seconds())
    except (ValueError, TypeError, OverflowError):  # not a time, or one without a zone
        return None


def still(seconds: float, at: str, now: datetime) -> float:
    """Return what is left now of the `seconds` that were left at the time `at`. For people.

    The times are of two hosts, whose clocks may differ: so it is never more than `seconds`.
    """
    return round(max(0.0, seconds - (passed(at, now) or 0.0)), 1)


def _until(seconds: JSON, now: datetime) -> JSON:
    if not isinstance(seconds, int | float):
        return None
    return (now + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def _left(seconds: JSON, at: JSON, now: datetime) -> JSON:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    return still(seconds, str(at), now)
