"""Judges a history by the invariants of the design (section 12): 1 to 6, 8 in part, and 9.

Each check is a pure function from a history to complaints; an empty list is a pass. They know the
contract and the layout of the store, and share no logic with the masters: what changed is worked
out from what callbacks were given, who left from what agents said.
"""

import json
from collections.abc import Callable, Iterator

from tests.simulation.health import Health
from tests.simulation.history import (
    KEYS,
    Acknowledged,
    Asked,
    Book,
    Commit,
    Ended,
    Failure,
    Farewell,
    History,
    Record,
    Settled,
    Started,
    deleted,
    puts,
    written,
)

from kontrol.ensemble.canonical import canonical
from kontrol.ensemble.ensemble import digest_of
from kontrol.ensemble.pod import Pod

EMPTY = digest_of(())
STUCK = 7.0  # seconds; EtcdConfig.timeout is 6


def check(history: History, ttl: float) -> list[str]:
    """Return every complaint about a history in which pods live for `ttl` seconds."""
    checks: dict[str, Callable[[History], Iterator[str]]] = {
        "1 no overlap": no_overlap,
        "2 no change is lost": nothing_lost,
        "3 no needless run": nothing_needless,
        "4 state, term and run": state_moves_by_runs,
        "5 one seq, newest record": numbers_and_order,
        "6 no reporting pod dropped": lambda history: reporting_pods_stay(history, ttl),
        "6 gap": lambda history: silence_of_the_tier(history, ttl),
        "8 masters live and end": no_failure,
        "9 true changes": true_changes,
        "9 true lists": true_lists,
    }
    return [f"invariant {name}: {text}" for name, f in checks.items() for text in f(history)]


def no_overlap(history: History) -> Iterator[str]:
    """1: no two processes of callbacks live at one time; each only while its run is booked."""
    book = Book()
    alive: dict[int, Started] = {}
    for entry in history:
        match entry:
            case Commit():
                book.apply(entry)
            case Started(at, node, run):
                for other in alive.values():
                    yield f"run {run} starts on {node} at {at:.3f} while {other.run} is alive"
                alive[run] = entry
                booked = book.running
                if booked is None or booked["run"] != run or booked["ended"]:
                    yield f"run {run} starts on {node} at {at:.3f} while the book has {booked}"
            case Ended(_, run):
                alive.pop(run, None)


def nothing_lost(history: History) -> Iterator[str]:
    """2: when all is quiet, the pods that live are in the store, and their digest is applied."""
    book = Book()
    for entry in history:
        if isinstance(entry, Commit):
            book.apply(entry)
        if isinstance(entry, Settled):
            yield from behind(book, entry)


def behind(book: Book, settled: Settled) -> Iterator[str]:
    """Say what the tier has not caught up with."""
    listed = book.listed
    held = {(p["id"], p["key"], json.dumps(p["payload"])) for p in listed}
    if held != set(settled.alive):
        yield f"the store has {sorted(held)}, alive are {sorted(settled.alive)}"
    digest = digest_of(Pod.decode(canonical(p)) for p in listed)
    applied = book.applied["digest"] if book.applied else EMPTY
    if applied != digest:
        yield f"applied is {applied}, the live pods have {digest}"
    if book.running is not None:
        yield f"a run is not acknowledged: {book.running}"


def nothing_needless(history: History) -> Iterator[str]:
    """3: a run is booked only if digest or callback are not those last committed, or one stands.

    Or if an operator asked for it.
    """
    book = Book()
    asked = False
    for entry in history:
        if isinstance(entry, Asked):
            asked |= entry.kind == "run"
        if not isinstance(entry, Commit):
            continue
        raw = written(entry, KEYS.running)
        run = None if raw is None else json.loads(raw)
        if run is not None and not run["ended"] and book.running is None:
            applied = book.applied
            if asked and run.get("reason") == "asked":
                book.apply(entry)
                continue
            same = run["digest"] == (applied["digest"] if applied else EMPTY)
            if same and (applied is None or applied["fingerprint"] == run["fingerprint"]):
                yield f"run {run['run']} at {entry.at:.3f} has nothing to do"
        book.apply(entry)


def state_moves_by_runs(history: History) -> Iterator[str]:
    """4: state moves with an acknowledgement, or a rollback; term and run numbers only rise."""
    book = Book()
    started: dict[int, Started] = {}
    ended: dict[int, Ended] = {}
    booked, term, acknowledged = 0, 0, 0
    for entry in history:
        match entry:
            case Started(at, _, run):
                if run in started:
                    yield f"run {run} starts again at {at:.3f}"
                if entry.term < max((s.term for s in started.values()), default=0):
                    yield f"run {run} starts at {at:.3f} in term {entry.term}, which is over"
                if entry.state != book.state:
                    yield f"run {run} at {at:.3f} is given {entry.state!r}, not {book.state!r}"
                started[run] = entry
            case Ended(_, run):
                ended[run] = entry
            case Commit(at):
                told = [leader.get("term", 0) for _, leader in puts(entry, KEYS.candidates)]
                term = max(term, *told, 0)
                raw = written(entry, KEYS.running)
                if raw is not None:
                    running = json.loads(raw)
                    begins = not running["ended"]  # a successor writes how its end was found
                    if begins and running["term"] < term:
                        yield f"term {running['term']} begins a run at {at:.3f} after term {term}"
                    if begins and running["run"] <= booked:
                        yield f"run {running['run']} is booked at {at:.3f} after run {booked}"
                    term, booked = max(term, running["term"]), max(booked, running["run"])
                back = _rolled_back(entry)
                if back is None:
                    yield from _acknowledgement(entry, book, ended, acknowledged)
                elif back <= booked:
                    yield f"a rollback at {at:.3f} is run {back}, after run {booked}"
                booked = max(booked, back or 0)
                book.apply(entry)
                if book.applied:
                    acknowledged = book.applied["run"]


def _rolled_back(commit: Commit) -> int | None:
    """Return the number of the rollback that a commit is, if it is one."""
    for _, run in puts(commit, KEYS.runs):
        if run["reason"] == "rollback" and written(commit, KEYS.applied) is None:
            return int(run["run"])
    return None


def _acknowledgement(
    commit: Commit, book: Book, ended: dict[int, Ended], last: int
) -> Iterator[str]:
    raw, state = written(commit, KEYS.applied), written(commit, KEYS.state)
    if raw is None:
        if state is not None or KEYS.state in deleted(commit, ""):
            yield f"the state moves at {commit.at:.3f} without an acknowledgement"
        return
    run = json.loads(raw)["run"]
    if run <= last:
        yield f"run {run} is acknowledged at {commit.at:.3f} after run {last}"
    running = book.running
    if running is None or running["run"] != run or running["ended"]:
        yield f"run {run} is acknowledged at {commit.at:.3f}, the book had {running}"
    if KEYS.running not in deleted(commit, ""):
        yield f"run {run} is acknowledged at {commit.at:.3f} and still booked as under way"
    ending = ended.get(run)
    if ending is None or not ending.ok:
        yield f"run {run} is acknowledged at {commit.at:.3f}, it ended: {ending}"
    elif state != ending.state:
        yield f"run {run} returned {ending.state!r}, committed is {state!r}"


def numbers_and_order(history: History) -> Iterator[str]:
    """5: one pod per seq, one seq per pod, and no older record over a newer."""
    book = Book()
    owner: dict[int, tuple[str, str]] = {}  # seq to (id, key), for ever
    seats: dict[tuple[str, str], int] = {}  # (id, key) to seq, while nobody else has had the key
    holder: dict[str, str] = {}  # key to id
    newest: dict[tuple[str, str], tuple[str, int]] = {}
    for entry in history:
        if not isinstance(entry, Commit):
            continue
        book.apply(entry)
        for key, pod in puts(entry, KEYS.pods):
            who, seq, age = (pod["id"], key), pod["seq"], (pod["nonce"], pod["n"])
            if pod["key"] != key:
                yield f"{pod['id']} at {entry.at:.3f} is under {key}, its key is {pod['key']}"
            if owner.setdefault(seq, who) != who:
                yield f"seq {seq} of {owner[seq]} goes to {who} at {entry.at:.3f}"
            if holder.get(key) not in (None, pod["id"]):
                seats.pop((holder[key], key), None)
            holder[key] = pod["id"]
            if seats.setdefault(who, seq) != seq:
                yield f"{who} was #{seats[who]} and becomes #{seq} at {entry.at:.3f}"
            if age < newest.setdefault(who, age):
                yield f"{who}: {age} is written at {entry.at:.3f} over {newest[who]}"
            newest[who] = max(age, newest[who])
        numbers = [pod["seq"] for pod in book.pods.values()]
        if len(set(numbers)) < len(numbers):
            yield f"two live pods share a seq at {entry.at:.3f}: {book.listed}"


def reporting_pods_stay(history: History, ttl: float) -> Iterator[str]:
    """6: an expiry never hits a pod acknowledged within TTL, or one that could report all along.

    Could: its process ran, unpaused, and one and the same master with the store was within its
    reach for a TTL, without a lossy link between; and for `STUCK` before, which a request that was
    lost on the way to the store may hold others up.
    """
    book = Book()
    health = Health()
    acknowledged: dict[tuple[str, str], float] = {}
    for entry in history:
        health.apply(entry)
        if isinstance(entry, Acknowledged):
            acknowledged[entry.id, entry.key] = entry.sent
        if not isinstance(entry, Commit):
            continue
        gone = {key: book.pods[key]["id"] for key in deleted(entry, KEYS.pods)}
        book.apply(entry)
        for key, name in gone.items():
            if key in book.pods or _left(book, entry, key):
                continue  # replaced, or said farewell
            since = entry.at - acknowledged.get((name, key), float("-inf"))
            if since < ttl:
                yield f"{name} expires at {entry.at:.3f}, {since:.3f} s after a keepalive"
            reach = health.reach(name, entry.at)
            if reach > ttl + STUCK:
                yield f"{name} expires at {entry.at:.3f}, in reach of a master for {reach:.3f} s"


def _left(book: Book, commit: Commit, key: str) -> bool:
    """Tell whether a commit that deletes a pod says that it left."""
    return any(name == key and seat["left"] for name, seat in puts(commit, KEYS.seats))


def silence_of_the_tier(history: History, ttl: float) -> Iterator[str]:
    """6: within TTL of an outage longer than TTL/3, of all masters, no run tells a pod lost."""
    health = Health()
    for entry in history:
        health.apply(entry)
        if isinstance(entry, Started):
            lost = [pod["id"] for pod in json.loads(entry.given)["lost"]]
            over = health.since_outage(ttl / 3 + 1, entry.at)
            if lost and over < ttl:
                yield f"run {entry.run} tells {lost} lost, {over:.3f} s after an outage of the tier"


def no_failure(history: History) -> Iterator[str]:
    """8: no master dies by itself, and each ends when it is told to."""
    for entry in history:
        if isinstance(entry, Failure):
            yield f"{entry.node} at {entry.at:.3f}: {entry.why}"


def true_changes(history: History) -> Iterator[str]:
    """9: what a run is told is the difference from the last acknowledged; who left had said so."""
    book = Book()
    lists: dict[int, dict[int, Record]] = {}  # run to its pods
    farewells: set[tuple[str, str]] = set()
    ids: dict[str, set[str]] = {}  # id to its keys
    fate: dict[int, str] = {}  # seq to left, lost, or either
    for entry in history:
        match entry:
            case Farewell(_, name, key):
                farewells.add((name, key))
            case Commit():
                for key in deleted(entry, KEYS.pods):
                    fate[book.pods[key]["seq"]] = "left" if _left(book, entry, key) else "lost"
                for key, pod in puts(entry, KEYS.pods):
                    ids.setdefault(pod["id"], set()).add(key)
                for key, seat in puts(entry, KEYS.seats):
                    key = key.partition(".")[0]
                    moved = len(ids.get(seat["id"], ())) > 1
                    if seat["left"] and (seat["id"], key) not in farewells and not moved:
                        yield f"{seat['id']} is said to have left at {entry.at:.3f}: it had not"
                    if seat["left"] and fate.get(seat["seq"]) == "lost":
                        fate[seat["seq"]] = "either"  # the farewell came after the expiry
                book.apply(entry)
            case Started(at, _, run):
                now = {pod["seq"]: pod for pod in json.loads(entry.pods)}
                lists[run] = now
                before = lists[book.applied["run"]] if book.applied else {}
                given = {
                    name: {row["seq"] for row in rows}
                    for name, rows in json.loads(entry.given).items()
                }
                changed = {seq for seq in before.keys() & now.keys() if before[seq] != now[seq]}
                for name, truth, told in (
                    ("joined", now.keys() - before.keys(), given["joined"]),
                    ("gone", before.keys() - now.keys(), given["left"] | given["lost"]),
                    ("changed", changed, given["changed"]),
                ):
                    if truth != told:
                        yield f"run {run} at {at:.3f} is told {name} {told}, true is {truth}"
                for name in ("left", "lost"):
                    for seq in sorted(given[name]):
                        if fate.get(seq) not in (name, "either"):
                            yield f"run {run} at {at:.3f}: #{seq} {name}? It {fate.get(seq)}"


def true_lists(history: History) -> Iterator[str]:
    """9: a run's pods are the store's at one revision, never an older one than an earlier run's.

    And their digest is the run's.
    """
    book = Book()
    seen: list[tuple[int, list[Record]]] = [(0, [])]
    oldest = 0
    for entry in history:
        if isinstance(entry, Commit):
            book.apply(entry)
            if book.listed != seen[-1][1]:
                seen.append((entry.revision, book.listed))
        if isinstance(entry, Started):
            pods: list[Record] = json.loads(entry.pods)
            matches = [i for i, (_, listed) in enumerate(seen) if listed == pods and i >= oldest]
            if not matches:
                yield f"run {entry.run} at {entry.at:.3f} has a list that never was, or is older"
            else:
                oldest = matches[0]
            digest = digest_of(Pod.decode(canonical(pod)) for pod in pods)
            if digest != entry.digest:
                yield f"run {entry.run} at {entry.at:.3f} is told {entry.digest}, true is {digest}"
