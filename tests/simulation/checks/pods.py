"""Invariants of pods and their registrations: 5, 6, and 9 in part."""

import json
import math
from collections.abc import Iterator

from tests.simulation.health import TIMEOUT, Health
from tests.simulation.history import (
    KEYS,
    Acknowledged,
    Commit,
    Deregistered,
    Elected,
    Fault,
    History,
    Leased,
    Process,
    Record,
    Refusal,
    Restore,
    Sent,
    Settings,
    Started,
    StoreView,
    deleted,
    puts,
)

SKEW = 1.06  # how much faster a clock may go than another, that is within 5 percent

Who = tuple[str, str]  # an id and a key


def numbers_and_order(history: History) -> Iterator[str]:
    """5: one pod per seq, one seq per pod, and no older record over a newer.

    Until a restore, which forgets, or a sweep.
    """
    view = StoreView()
    ages = Ages()
    owner: dict[int, Who] = {}  # of each seq, permanently
    given: dict[Who, int] = {}  # the seq of an identity, while no other has had the key
    holder: dict[str, str] = {}  # key to id
    newest: dict[Who, tuple[str, int]] = {}
    for entry in history:
        ages.apply(entry)
        gone = deleted(entry, KEYS.registrations) if isinstance(entry, Commit) else []
        swept = [(view.registrations[key]["id"], key) for key in gone if key in view.registrations]
        if not view.apply(entry):
            continue
        if isinstance(entry, Restore):
            owner = {
                registration["seq"]: (registration["id"], _key(key))
                for key, registration in view.registrations.items()
            }
            given = {
                (registration["id"], key): registration["seq"]
                for key, registration in view.registrations.items()
                if "." not in key
            }
            holder = {key: name for name, key in given}
            newest = {(pod["id"], key): _age(pod) for key, pod in view.pods.items()}
        for who in swept:
            given.pop(who, None)
            newest.pop(who, None)
        for key, pod in _pods(entry):
            who, seq, age = (pod["id"], key), pod["seq"], _age(pod)
            if pod["key"] != key:
                yield f"{pod['id']} at {entry.at:.3f} is under {key}, its key is {pod['key']}"
            if owner.setdefault(seq, who) != who:
                yield f"seq {seq} of {owner[seq]} goes to {who} at {entry.at:.3f}"
            if holder.get(key) not in (None, pod["id"]):
                given.pop((holder[key], key), None)
            holder[key] = pod["id"]
            if given.setdefault(who, seq) != seq:
                yield f"{who} was #{given[who]} and becomes #{seq} at {entry.at:.3f}"
            known = newest.setdefault(who, age)
            if ages.older(age, known, who, entry.at):
                yield f"{who}: {age} is written at {entry.at:.3f} over {known}"
            newest[who] = age
        numbers = [pod["seq"] for pod in view.pods.values()]
        if len(set(numbers)) < len(numbers):
            yield f"two live pods share a seq at {entry.at:.3f}: {view.listed}"


class Ages:
    """Which of two records is older, in truth: by when their processes started."""

    def __init__(self) -> None:
        self._processes = 0
        self._current: dict[str, int] = {}  # node to the number of its process
        self._alive: set[int] = set()
        self._born: dict[str, int] = {}  # nonce to that number
        self._heard: dict[tuple[Who, int], float] = {}  # when one was last acknowledged
        self._ttl = Settings().ttl

    def apply(self, entry: object) -> None:
        """Take an entry in."""
        match entry:
            case Process(_, node, up, settings):
                self._alive.discard(self._current.get(node, 0))
                if up:
                    self._processes += 1
                    self._current[node] = self._processes
                    self._alive.add(self._processes)
                if settings is not None:
                    self._ttl = min(self._ttl, settings.ttl)
            case Sent(_, node, _, _, nonce):
                self._born[nonce] = self._current[node]
            case Commit():
                for name, registration in puts(entry, KEYS.registrations):
                    if (
                        registration.get("left")
                        and registration.get("id")
                        and registration.get("nonce") in self._born
                    ):
                        who = registration["id"], _key(name)  # its process is not heard any more
                        self._heard[who, self._born[registration["nonce"]]] = float("-inf")
            case Acknowledged(_, sent, name, key, nonce):
                if nonce in self._born:
                    self._heard[(name, key), self._born[nonce]] = sent

    def older(self, age: tuple[str, int], known: tuple[str, int], who: Who, at: float) -> bool:
        """Tell whether a record of `age` must not be written over one that is known.

        What a process sent before it ended must not be over what a later process said. Of two that
        live under one identity each may have the last word, in the order of their nonces; or once
        the other has been silent for half a TTL. Where a clock was set back between two processes,
        a late message of the first cannot be told from that of a third.
        """
        mine, other = (self._born.get(nonce, 0) for nonce, _ in (age, known))
        silent = at - self._heard.get((who, other), float("-inf")) > 0.45 * self._ttl
        if age > known:
            return False
        if mine == other or (mine in self._alive and not silent):
            return age < known
        return mine < other and mine not in self._alive and not silent


def _age(pod: Record) -> tuple[str, int]:
    return pod["nonce"], pod["n"]


def _key(name: str) -> str:
    """Return the key of a registration, which an old one's name goes on after."""
    return name.partition(".")[0]


def _pods(entry: object) -> Iterator[tuple[str, Record]]:
    if isinstance(entry, Commit):
        for key, pod in puts(entry, KEYS.pods):
            if {"id", "key", "seq", "nonce", "n"} <= pod.keys():
                yield key, pod


def reporting_pods_stay(history: History) -> Iterator[str]:
    """6: an expiry never hits a pod acknowledged within TTL, or one that could report all along.

    To the TTL counts when the store was asked: keepalives of one pod share what is on its way.

    Could: its process ran, unpaused, and one and the same master with the store was within its
    reach for a TTL, without a lossy link between; and for `TIMEOUT` before, for which a request
    that was lost on the way to the store may hold others up.
    """
    view = StoreView()
    health = Health()
    acknowledged: dict[Who, Acknowledged] = {}
    lives: dict[Who, float] = {}  # for how long after it
    for entry in history:
        health.apply(entry)
        if isinstance(entry, Acknowledged):
            acknowledged[entry.id, entry.key] = entry
            lives[entry.id, entry.key] = entry.ttl
            if health.rough(entry.at):  # leaders come and go, with the TTL of each
                lives[entry.id, entry.key] = min(entry.ttl, *health.ttls) - TIMEOUT
        gone: dict[str, str] = {}
        if isinstance(entry, Commit):
            keys = [key for key in deleted(entry, KEYS.pods) if key in view.pods]
            gone = {key: view.pods[key]["id"] for key in keys}
        if isinstance(entry, Restore):
            acknowledged.clear()
        if not view.apply(entry):
            continue
        for key, name in gone.items():
            if key in view.pods or _left(entry, key):
                continue  # replaced, or deregistered
            last = acknowledged.get((name, key))
            if last is not None and entry.at - last.sent < lives[name, key]:
                since = entry.at - last.sent
                yield f"{name} expires at {entry.at:.3f}, {since:.3f} s after a keepalive"
            reach = health.reach(name, key, entry.at)
            ttl = max(settings.ttl for settings in health.settings.values())
            if reach > ttl + TIMEOUT:
                yield f"{name} expires at {entry.at:.3f}, in reach of a master for {reach:.3f} s"


def who_asks_is_taken(history: History) -> Iterator[str]:
    """6: a process that can report is acknowledged, within three quarters of a TTL.

    Half of one is for another to be found silent that stands in its way.
    """
    health = Health()
    taken: dict[str, float] = {}  # when each process was last acknowledged
    nodes: dict[tuple[str, str, str], str] = {}  # of an id, key and nonce
    rough = float("-inf")
    for entry in history:
        health.apply(entry)
        match entry:
            case Sent(_, node, name, key, nonce):
                nodes[name, key, nonce] = node
            case Acknowledged(at, _, name, key, nonce):
                taken[nodes.get((name, key, nonce), name)] = at
            case Process(_, node):
                taken.pop(node, None)
            case Refusal(at, node, name) if name not in ("NoSpace", "Denied"):
                ttl = max(settings.ttl for settings in health.settings.values())
                limit = 0.75 * ttl + TIMEOUT
                rough = at if health.rough(at) else rough
                for p, _, reach in health.reaching(at):
                    waited = min(reach, at - max(taken.get(p, rough), rough))
                    if p == node and waited > limit:
                        yield f"{p} is refused at {at:.3f}, as it has been for {waited:.3f} s"
                        rough = at  # said once
            case _:
                pass


def _left(entry: object, key: str) -> bool:
    """Tell whether a commit that deletes a pod says that it left."""
    return isinstance(entry, Commit) and any(
        name == key and registration.get("left")
        for name, registration in puts(entry, KEYS.registrations)
    )


def true_changes(history: History) -> Iterator[str]:
    """9: what a run is told is the difference from the last acknowledged; who left had said so."""
    view = StoreView()
    lists: dict[tuple[int, str], dict[int, Record]] = {}  # (run, digest) to its pods
    deregistered: set[Who] = set()
    ids: dict[str, set[str]] = {}  # id to its keys
    fate: dict[int, str] = {}  # seq to left, lost, or either
    for entry in history:
        match entry:
            case Deregistered(_, name, key):
                deregistered.add((name, key))
            case Restore():
                fate = dict.fromkeys(range(1 + max((*fate, *_seqs(view)), default=0)), "either")
            case Commit():
                _decide_fates(fate, entry, view)
                for key, pod in _pods(entry):
                    ids.setdefault(pod["id"], set()).add(key)
                for name, registration in puts(entry, KEYS.registrations):
                    if not registration.get("left"):
                        continue
                    moved = len(ids.get(registration["id"], ())) > 1
                    if (registration["id"], _key(name)) not in deregistered and not moved:
                        who = registration["id"]
                        yield f"{who} is said to have left at {entry.at:.3f}: it had not"
            case Started(at, _, run):
                now = {pod["seq"]: pod for pod in json.loads(entry.pods)}
                lists[run, entry.digest] = now
                applied = view.applied
                before = lists[applied["run"], applied["digest"]] if applied else {}
                yield from _told(f"run {run} at {at:.3f}", entry, before, now)
                for name, rows in json.loads(entry.given).items():
                    for seq in [row["seq"] for row in rows if name in ("left", "lost")]:
                        if fate.get(seq) not in (name, "either"):
                            yield f"run {run} at {at:.3f}: #{seq} {name}? It {fate.get(seq)}"
        view.apply(entry)


def _seqs(view: StoreView) -> list[int]:
    return [pod["seq"] for pod in view.pods.values()]


def _decide_fates(fate: dict[int, str], commit: Commit, before: StoreView) -> None:
    """Note who left and who was lost by a commit; `before` is the store without it."""
    for key in deleted(commit, KEYS.pods):
        if key in before.pods:
            fate[before.pods[key]["seq"]] = "left" if _left(commit, key) else "lost"
    for key, pod in _pods(commit):
        known = before.pods.get(key)
        if known is not None and known["seq"] != pod["seq"]:
            fate[known["seq"]] = "lost"  # replaced by another identity
    for key in deleted(commit, KEYS.registrations):
        if key in before.registrations:
            fate[before.registrations[key]["seq"]] = "either"  # swept, and not known any more
    for _, registration in puts(commit, KEYS.registrations):
        if registration.get("left") and fate.get(registration["seq"]) == "lost":
            fate[registration["seq"]] = "either"  # the deregistration came after the expiry


def _told(
    run: str, started: Started, before: dict[int, Record], now: dict[int, Record]
) -> Iterator[str]:
    """Compare what a run is told with the true difference."""
    rows = json.loads(started.given)
    rows.pop("spec", None)
    given = {name: {row["seq"] for row in rows[name]} for name in rows}
    changed = {seq for seq in before.keys() & now.keys() if before[seq] != now[seq]}
    for name, truth, told in (
        ("joined", now.keys() - before.keys(), given["joined"]),
        ("gone", before.keys() - now.keys(), given["left"] | given["lost"]),
        ("changed", changed, given["changed"]),
    ):
        if truth != told:
            yield f"{run} is told {name} {told}, true is {truth}"


def silent_pods_go(history: History) -> Iterator[str]:
    """7: a silent pod is gone within TTL + 2 s of its last refresh, or of an election of the store.

    The TTL is the leader's; the highest of those that led while a change of it went round, which
    takes as long as something keeps a pod from a lease of the new one; and the highest of all
    masters while there is no leader, or one of a version that does not say its TTL: then each
    master uses its own.
    """
    view = StoreView()
    health = Health()
    refreshed: dict[int, float] = {}  # lease to its last refresh
    led: list[tuple[float, float]] = []  # when there was a leader with which TTL
    full = elected = restored = float("-inf")
    said: set[int] = set()  # leases
    for entry in history:
        health.apply(entry)
        match entry:
            case Leased(at, lease):
                refreshed[lease] = at
            case Restore(at):
                elected = restored = at
            case Elected(at):
                elected = at
            case Fault(at, "full"):
                full = at
            case Commit(at):
                for key in view.pods:
                    lease = view.raw[KEYS.pods + key].lease
                    heard = max(refreshed.get(lease, elected), elected)
                    limit = _ruled(led, heard, health, restored) + 2
                    room = heard - full > 2 * limit  # to change the lease for another
                    if lease and at - heard > limit and room and lease not in said:
                        said.add(lease)
                        yield f"{key} is there at {at:.3f}, {at - heard:.3f} s after a refresh"
        view.apply(entry)
        leader = view.leader
        settings = health.settings.get(leader["id"]) if leader and "ttl" in leader else None
        ttl = settings.ttl if settings is not None else max(health.ttls, default=0.0)
        if not led or led[-1][1] != ttl:
            led.append((entry.at, ttl))


def _ruled(led: list[tuple[float, float]], at: float, health: Health, restored: float) -> float:
    """Return the highest TTL that ruled at a time, or shortly before.

    A restore brings back leases, and candidacies, of some time before it.
    """
    highest = max((settings.ttl for settings in health.settings.values()), default=math.inf)
    since = min(at, health.fault_since(at)) - 2 * highest - TIMEOUT
    before = [ttl for begin, ttl in led if begin <= since][-1:]
    lately = [ttl for begin, ttl in led if begin <= at and since < max(begin, restored)]
    return max((*before, *lately), default=highest) + 1  # leases are of whole seconds


def registrations_stay(history: History) -> Iterator[str]:
    """9: a registration, which shows who left and keeps a number, outlives its pod as promised."""
    view = StoreView()
    health = Health()
    used: dict[str, float] = {}  # when each registration was last used
    for entry in history:
        health.apply(entry)
        if isinstance(entry, Restore):
            used.clear()
        if isinstance(entry, Commit):
            age = min((settings.age for settings in health.settings.values()), default=math.inf)
            for name in deleted(entry, KEYS.registrations):
                if name not in view.registrations or name not in used:
                    continue
                since = entry.at - used.pop(name)
                if since < age / SKEW or (_key(name) in view.pods and "." not in name):
                    yield f"{name} is swept at {entry.at:.3f}, {since:.3f} s after its last use"
            for key in deleted(entry, KEYS.pods):
                used[key] = entry.at
            for name, registration in puts(entry, KEYS.registrations):
                if {**registration, "idle": 0} != {**view.registrations.get(name, {}), "idle": 0}:
                    used[name] = entry.at
        view.apply(entry)
