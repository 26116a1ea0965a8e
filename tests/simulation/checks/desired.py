"""The desired state, 12: each change is made once and as it was expected, and seen by a run."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.simulation.history import (
    KEYS,
    Answered,
    Commit,
    Entry,
    History,
    Record,
    Restore,
    Settled,
    Started,
    StoreView,
    Wanted,
    decode,
    written,
)

from kontrol.ensemble.canonical import canonical

MADE = "made"


def spec_of(raw: bytes | None) -> dict[str, object]:
    """Return the values that a record of the desired state has."""
    record = None if raw is None else decode(raw)
    return {} if record is None else {key: it["value"] for key, it in record["values"].items()}


def marks_of(spec: Mapping[str, object]) -> dict[str, str]:
    """Return what the record of an acknowledged run has of a desired state."""
    return {key: hashlib.sha256(canonical(it)).hexdigest()[:32] for key, it in spec.items()}


def marks_in(view: StoreView) -> dict[str, str]:
    """Return the marks of the desired state in the store."""
    kv = view.raw.get(KEYS.spec)
    return marks_of(spec_of(None if kv is None else kv.value))


def acknowledged_marks(view: StoreView) -> dict[str, str]:
    """Return those that the last acknowledged run got, as its record says."""
    marks: dict[str, str] = (view.applied or {}).get("spec") or {}
    return marks


def unseen(view: StoreView) -> bool:
    """Tell whether the last acknowledged run was for another desired state than there is.

    Not under a leader of the version before, which does not know it.
    """
    leader = view.leader
    known = leader is not None and "version" in leader
    return known and marks_in(view) != acknowledged_marks(view)


@dataclass
class _Changes:
    """What is known of the changes that operators made."""

    wanted: dict[int, Wanted] = field(default_factory=dict)
    made: dict[int, int] = field(default_factory=dict)  # how often since the last restore
    before: set[int] = field(default_factory=set)  # made before a restore


def made_once(history: History) -> Iterator[str]:
    """12: a change is made once, on the value that it expects, and answered as what it was."""
    changes, spec = _Changes(), dict[str, object]()
    for entry in history:
        match entry:
            case Wanted(_, _, number):
                changes.wanted[number] = entry
            case Restore(_, _, _, kvs):
                changes.before |= set(changes.made)
                changes.made.clear()
                spec = spec_of(next((kv.value for kv in kvs if kv.key == KEYS.spec), None))
            case Commit(at):
                raw = written(entry, KEYS.spec)
                if raw is not None:
                    now = spec_of(raw)
                    yield from _one_change(at, spec, now, raw, changes)
                    spec = now
            case Answered(at, number, result):
                done = number in changes.made or number in changes.before
                if done != (result == MADE) and result != "unknown":
                    yield f"change {number} is answered {result!r} at {at:.3f}, made is {done}"


def _one_change(
    at: float, before: dict[str, object], now: dict[str, object], raw: bytes, changes: _Changes
) -> Iterator[str]:
    by = (decode(raw) or {})["log"][-1]["by"]
    number = int(by.rpartition(" ")[2])
    wanted = changes.wanted[number]
    changes.made[number] = changes.made.get(number, 0) + 1
    if changes.made[number] > 1:
        yield f"change {number} is made again at {at:.3f}"
    has = canonical(before[wanted.key]) if wanted.key in before else None
    if wanted.expects and has != wanted.expected:
        yield f"change {number} expects {wanted.expected!r}, and is made at {at:.3f} on {has!r}"
    after = dict(before)
    after.pop(wanted.key, None)
    if wanted.value is not None:
        after[wanted.key] = json.loads(wanted.value)
    if after != now:
        yield f"change {number} at {at:.3f} makes {now}, not {after}"


def seen_by_a_run(history: History) -> Iterator[str]:
    """12: a run gets a state that there was, no older than the last run's, with what changed.

    In the end the last acknowledged run had the present one. Such a run tells no pod lost.
    """
    view = StoreView()
    states: list[dict[str, object]] = [{}]  # each one since the last run's
    ran: dict[int, dict[str, object]] = {}
    acknowledged: dict[str, object] | None = {}  # None: a leader of the version before ran it
    for entry in history:
        match entry:
            case Restore(_, _, _, kvs):
                now = spec_of(next((kv.value for kv in kvs if kv.key == KEYS.spec), None))
                states = [*states, now]  # a run of before may be about to start
                acknowledged = None
            case Started(at, _, run):
                given = {} if entry.spec is None else json.loads(entry.spec)
                if given not in states:
                    yield f"run {run} at {at:.3f} gets {given}, there were {states}"
                else:
                    states = states[states.index(given) :]
                ran[run] = given
                yield from _told(entry, acknowledged, given)
                yield from _of_losses(entry, view)
            case Commit():
                if (raw := written(entry, KEYS.spec)) is not None:
                    states.append(spec_of(raw))
                if (raw := written(entry, KEYS.applied)) is not None:
                    head = decode(raw) or {}
                    acknowledged = ran.get(head["run"])
                    if marks_of(acknowledged or {}) != (head.get("spec") or {}):
                        acknowledged = None
            case Settled(at):
                if unseen(view):
                    kv = view.raw.get(KEYS.spec)
                    spec = spec_of(None if kv is None else kv.value)
                    yield f"at {at:.3f} the desired state is {spec}, applied is {view.applied}"
        view.apply(entry)


def _told(run: Started, before: dict[str, object] | None, now: dict[str, object]) -> Iterator[str]:
    told = json.loads(run.given).get("spec") or {"set": [], "unset": []}
    if before is None:
        return
    truth = {
        "set": sorted(key for key in now if key not in before or before[key] != now[key]),
        "unset": sorted(before.keys() - now.keys()),
    }
    if told != truth:
        yield f"run {run.run} at {run.at:.3f} is told {told} of the desired state, true is {truth}"


def _of_losses(run: Started, view: StoreView) -> Iterator[str]:
    running: Record = view.running or {}
    if running.get("run") == run.run and running.get("reason") == "spec":
        lost = [pod["id"] for pod in json.loads(run.given)["lost"]]
        if lost:
            yield f"run {run.run}, due to the desired state, tells {lost} lost"


class Needed:
    """Whether a run may be due to the desired state: it differed since the last acknowledged run.

    The leader may have decided just before it was set back.
    """

    def __init__(self) -> None:
        self.differed = False

    def apply(self, entry: Entry, view: StoreView) -> None:
        """Take an entry in; `view` is the store with it."""
        if isinstance(entry, Restore) or (
            isinstance(entry, Commit) and written(entry, KEYS.applied) is not None
        ):
            self.differed = isinstance(entry, Restore)
        if isinstance(entry, Commit | Restore) and marks_in(view) != acknowledged_marks(view):
            self.differed = True
