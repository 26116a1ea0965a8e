"""Invariants of runs: 1 to 4, and 9 in part."""

import json
from collections.abc import Iterator

from tests.simulation.checks.desired import Needed, unseen
from tests.simulation.checks.numbers import Numbers
from tests.simulation.history import (
    KEYS,
    Asked,
    Commit,
    Ended,
    History,
    Record,
    Restore,
    Settled,
    Started,
    StoreView,
    decode,
    deleted,
    puts,
    written,
)

from kontrol.ensemble.canonical import canonical
from kontrol.ensemble.ensemble import digest_of
from kontrol.ensemble.pod import Pod

EMPTY = digest_of(())


def no_overlap(history: History) -> Iterator[str]:
    """1: no two processes of callbacks live at one time; each only while its run is recorded.

    A restore may undo the record of one that is about to start.
    """
    view = StoreView()
    alive: dict[int, Started] = {}
    forgotten: set[int] = set()
    for entry in history:
        match entry:
            case Restore():
                forgotten |= _under_way(view)
            case Started(at, node, run):
                for other in alive.values():
                    yield f"run {run} starts on {node} at {at:.3f} while {other.run} is alive"
                alive[run] = entry
                if run not in _under_way(view) | forgotten:
                    has = view.running
                    yield f"run {run} starts on {node} at {at:.3f} while the ledger has {has}"
            case Ended(_, run):
                alive.pop(run, None)
        view.apply(entry)


def _under_way(view: StoreView) -> set[int]:
    running = view.running
    return set() if running is None or running["ended"] else {running["run"]}


def nothing_lost(history: History) -> Iterator[str]:
    """2: when all is quiet, the pods that live are in the store, and their digest is applied."""
    view = StoreView()
    for entry in history:
        view.apply(entry)
        if isinstance(entry, Settled):
            yield from behind(view, entry)


def behind(view: StoreView, settled: Settled) -> Iterator[str]:
    """Say what the tier has not caught up with."""
    listed, applied = view.listed, view.applied
    held = {(p["id"], p["key"], json.dumps(p["payload"])) for p in listed}
    if held != set(settled.alive):
        yield f"the store has {sorted(held)}, alive are {sorted(settled.alive)}"
    digest = digest_of(Pod.decode(canonical(p)) for p in listed)
    if (applied["digest"] if applied else EMPTY) != digest:
        yield f"applied is {applied}, the live pods have {digest}"
    if applied and settled.fingerprint and applied["fingerprint"] != settled.fingerprint:
        yield f"applied is {applied}, the masters have {settled.fingerprint}"
    if unseen(view):
        yield f"applied is {applied}, the desired state is another one"
    if view.running is not None:
        yield f"a run is not acknowledged: {view.running}"


def nothing_needless(history: History) -> Iterator[str]:
    """3: a run is recorded only if digest or callback are not those last committed, or one stands.

    Or if an operator asked for it, at its time (see `timed`), or for the desired state.
    """
    view, needed = StoreView(), Needed()
    asked = False
    for entry in history:
        if isinstance(entry, Asked):
            asked |= entry.kind == "run"
        if isinstance(entry, Commit):
            raw = written(entry, KEYS.running)
            run = None if raw is None else decode(raw)
            if run is not None and not run["ended"] and view.running is None:
                applied = view.applied
                same = run["digest"] == (applied["digest"] if applied else EMPTY)
                same = same and (applied is None or applied["fingerprint"] == run["fingerprint"])
                timed = run.get("reason") in ("again", "schedule")
                timed |= run.get("reason") == "spec" and needed.differed
                if same and not timed and not (asked and run.get("reason") == "asked"):
                    yield f"run {run['run']} at {entry.at:.3f} has nothing to do"
        view.apply(entry)
        needed.apply(entry, view)


def state_moves_by_runs(history: History) -> Iterator[str]:
    """4: state moves with an acknowledgement, or a rollback; term and run numbers only rise.

    What a run is given is the state in the store; unless that was restored as it started.
    """
    view = StoreView()
    numbers = Numbers()
    started: set[int] = set()
    ended: dict[int, Ended] = {}
    forgotten: set[int] = set()
    latest = 0  # term of a run that started
    for entry in history:
        numbers.apply(entry)
        match entry:
            case Restore():
                latest = 0
                forgotten |= _under_way(view)
                started = {run for run in started if run <= numbers.run}
            case Started(at, _, run):
                if run in started:
                    yield f"run {run} starts again at {at:.3f}"
                if entry.state != view.state and run not in forgotten:
                    yield f"run {run} at {at:.3f} is given {entry.state!r}, not {view.state!r}"
                if entry.term < latest:
                    yield f"run {run} starts at {at:.3f} in term {entry.term}, which is over"
                latest = max(latest, entry.term)
                started.add(run)
            case Ended(_, run):
                ended[run] = entry
            case Commit():
                yield from numbers.complaints(entry)
                if rolled_back(entry) is None:
                    yield from _acknowledgement(entry, view, ended)
        view.apply(entry)


def rolled_back(commit: Commit) -> int | None:
    """Return the number of the rollback that a commit is, if it is one."""
    for _, run in puts(commit, KEYS.runs):
        if run.get("reason") == "rollback" and written(commit, KEYS.applied) is None:
            return int(run["run"])
    return None


def _acknowledgement(commit: Commit, view: StoreView, ended: dict[int, Ended]) -> Iterator[str]:
    raw, state = written(commit, KEYS.applied), written(commit, KEYS.state)
    if raw is None:
        if state is not None or KEYS.state in deleted(commit, ""):
            yield f"the state moves at {commit.at:.3f} without an acknowledgement"
        return
    run, last = json.loads(raw)["run"], view.applied
    if last and run <= last["run"]:
        yield f"run {run} is acknowledged at {commit.at:.3f} after run {last['run']}"
    running = view.running
    if running is None or running["run"] != run or running["ended"]:
        yield f"run {run} is acknowledged at {commit.at:.3f}, the ledger had {running}"
    if KEYS.running not in deleted(commit, ""):
        yield f"run {run} is acknowledged at {commit.at:.3f} and still recorded as under way"
    ending = ended.get(run)
    if ending is None or not ending.ok:
        yield f"run {run} is acknowledged at {commit.at:.3f}, it ended: {ending}"
    elif state != ending.state:
        yield f"run {run} returned {ending.state!r}, committed is {state!r}"


def true_lists(history: History) -> Iterator[str]:
    """9: a run's pods are the store's at one revision, never an older one than an earlier run's.

    And their digest is the run's.
    """
    view = StoreView()
    seen: list[list[Record]] = [[]]
    oldest = 0
    for entry in history:
        if view.apply(entry) and view.listed != seen[-1]:
            seen.append(view.listed)
        if isinstance(entry, Started):
            pods: list[Record] = json.loads(entry.pods)
            matches = [i for i in range(oldest, len(seen)) if seen[i] == pods]
            if not matches:
                yield f"run {entry.run} at {entry.at:.3f} has a list that never was, or is older"
            else:
                oldest = matches[0]
            digest = digest_of(Pod.decode(canonical(pod)) for pod in pods)
            if digest != entry.digest:
                yield f"run {entry.run} at {entry.at:.3f} is told {entry.digest}, true is {digest}"
