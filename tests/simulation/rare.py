"""How often a history reached what is rare: a suite that never gets there proves nothing of it.

Taken from what the store and the world saw, not from what the masters did inside.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator

from tests.simulation.checks.desired import acknowledged_marks, marks_in, marks_of, spec_of
from tests.simulation.checks.holds import Tier, mass
from tests.simulation.checks.published import current
from tests.simulation.checks.runs import rolled_back
from tests.simulation.checks.silence import losses
from tests.simulation.history import (
    KEYS,
    RESTORES,
    Acknowledged,
    Answered,
    Commit,
    Ended,
    Entry,
    Garbage,
    History,
    Hook,
    Process,
    Published,
    Record,
    Refusal,
    Replaced,
    Restore,
    Sent,
    Settings,
    Started,
    Unsure,
    decode,
    deleted,
    puts,
    written,
)
from tests.simulation.history import Fenced as FencedWrite
from tests.simulation.suite import SCHEDULES
from tests.simulation.versions import NEXT

BRANCHES: dict[str, str] = {
    "orphan": "a new leader finds a run that its predecessor did not end",
    "takeover": "a new leader, other than the last, goes on where that one was",
    "braked": "a mass loss under a leader that holds it",
    "braked takeover": "a change of leader meanwhile",
    "released": "the brake is released by an operator",
    "brake over": "a run tells a mass loss, since it was held for long enough",
    "failed": "a run failed",
    "retried": "a run is tried again",
    "killed": "a run is killed with the term of its leader",
    "withdrawn": "a run is not started, because the write before it had to wait",
    "late start": "a run is started though the write before it had to wait",
    "late acknowledgement": "an acknowledgement is done, its answer lost, and the leader goes on",
    "fenced": "a write of a former leader is refused",
    "rollback": "a state is restored",
    "new callback": "a run is due to another callback",
    "replaced": "the callback is replaced under a running master",
    "asked": "an operator asks for a run, and gets it",
    "again": "a run comes as the last one asked",
    "again elsewhere": "such a run is started by another master than the one that was asked",
    "again restored": "such a run comes after a restore",
    "again late": "such a run ends without success, and comes later",
    "again replaced": "another run is acknowledged before the time that was asked for",
    "again with changes": "a run at its time takes along what the damper holds",
    "schedule": "a run comes since KONTROL_EVERY has passed",
    "urgent": "a run for an urgent change comes before the damper would let it",
    "urgent held": "an urgent change is held by the gap or the brake",
    "note": "a note is committed",
    "silent": "a pod that was acknowledged runs its silent hook",
    "silent start": "a pod that was never acknowledged does",
    "silent killed": "a silent hook takes too long",
    "silent retried": "one runs again after it failed",
    "silent for heard": "one begins although a heard hook runs, which is ended",
    "silent and lost": "a pod is lost whose silent hook was over before",
    "heard again": "a heard hook runs after a silent one",
    "desired": "a run comes for a change of the desired state",
    "desired with changes": "such a run takes along what the damper holds",
    "desired elsewhere": "such a run is started by another master than the last",
    "desired during": "the desired state is changed while a run is under way",
    "desired back": "it is set back to what the last acknowledged run had",
    "desired race": "a change is not made, since another one came first",
    "desired unsure": "the answer to a change is lost, which was made",
    "desired unknown": "a change is answered as one that may have been made",
    "published": "a run publishes a document",
    "published refused": "a document is refused, since its leader leads no more",
    "published unsure": "the answer to such a write is lost, which was done",
    "published again": "what is published gets a later version after a restore",
    "live": "a run sees live facts of all its pods",
    "live in part": "a run sees those of some pods, and others have none",
    "live after": "a run sees live facts that came after the run before",
    "swept": "a registration is deleted that was unused for long",
    "left": "a run tells that a pod left",
    "came late": "a pod leaves that was lost",
    "moved": "a pod's id comes back at another address",
    "conflict": "another id at a key is refused",
    "usurped": "another id takes a key over",
    "stale": "a record is refused that is older than one there is",
    "leap": "a process goes on under a later nonce, since its own was refused",
    "new lease": "a living pod gets another lease",
    "no space": "the store accepts no write",
    "denied": "the store refuses credentials",
    "unsure": "the answer to a write is lost, which was done",
    "other version": "a record of a later version is rewritten",
    "garbage": "a client writes what is no record",
    **{f"restore {kind}": text for kind, text in RESTORES.items()},
    "restore forgets": "a run is forgotten by a restore, and numbers go on above it",
}


def reached(history: History) -> Counter[str]:
    """Return how often each of `BRANCHES` was reached, by name and what it is; and one schedule."""
    tier, past = Tier(), _Past()
    counts: Counter[str] = Counter()
    for entry in history:
        for look in _LOOKS:
            counts.update(look(entry, tier, past))
        tier.apply(entry)
        past.apply(entry)
        if tier.listed != past.listed:
            past.listed, past.changed = tier.listed, entry.at
    counts["silent and lost"] = sum(pod.over is not None for _, pod, _, _ in losses(history))
    told = {f"{name}: {text}": counts[name] for name, text in BRANCHES.items()}
    return Counter({SCHEDULES: 1, **told})


class _Past:
    """What the looks need to remember."""

    def __init__(self) -> None:
        self.term = 0
        self.leader = ""
        self.highest = 0  # run
        self.forgotten = 0  # run
        self.ended: dict[int, bool] = {}
        self.started: set[int] = set()
        self.unsure: dict[str, Unsure] = {}  # of each key, the last
        self.waited = float("-inf")  # when the write that starts a run last had to wait
        self.nonces: dict[tuple[str, str, str], str] = {}  # of a node under an identity
        self.refused: dict[str, str] = {}  # node to the name of its last refusal
        self.keys: dict[str, str] = {}  # of each id
        self.reasons: dict[int, str] = {}  # of runs that started
        self.nodes: dict[int, str] = {}  # where they did
        self.restored = False  # since the last acknowledgement
        self.ran = float("-inf")  # when a run started last
        self.acknowledged = float("-inf")  # when that was
        self.changed = float("-inf")  # when the list of pods last changed
        self.listed: list[Record] = []
        self.hooks: dict[str, Hook] = {}  # the last of each node
        self.senders: dict[str, str] = {}  # nonce to node
        self.heard: set[str] = set()  # nodes whose process was acknowledged

    def apply(self, entry: Entry) -> None:
        match entry:
            case Commit():
                for _, candidate in puts(entry, KEYS.candidates):
                    if candidate.get("term", 0) > self.term:
                        self.term, self.leader = candidate["term"], candidate.get("id", "")
                for name, pod in puts(entry, KEYS.pods):
                    self.keys[pod.get("id", "")] = name
                if written(entry, KEYS.applied) is not None:
                    self.restored, self.acknowledged = False, entry.at
            case Restore():
                self.forgotten = self.highest
                self.restored = True
            case Started(_, node, run):
                self.started.add(run)
                self.nodes[run] = node
                self.highest = max(self.highest, run)
            case Ended(_, run, ok):
                self.ended[run] = ok
            case Unsure(at, _, keys, done):
                if done:
                    self.unsure |= dict.fromkeys(keys, entry)
                if KEYS.running in keys and KEYS.last_run in keys:
                    self.waited = at
            case Sent(_, node, name, key, nonce):
                self.nonces[node, name, key] = nonce
                self.senders[nonce] = node
            case Acknowledged(_, _, _, _, nonce):
                self.heard.add(self.senders.get(nonce, ""))
            case Process(_, node):
                self.heard.discard(node)
                self.hooks.pop(node, None)
            case Hook(_, node):
                self.hooks[node] = entry
            case Refusal(_, node, name):
                self.refused[node] = name


def _settings(tier: Tier, leader: str) -> Settings:
    return tier.health.settings.get(leader, Settings())


def _braked(tier: Tier, leader: str) -> bool:
    return mass(len(tier.lost), tier.of, _settings(tier, leader).brake)


def _terms(entry: Entry, tier: Tier, past: _Past) -> Iterator[str]:
    if not isinstance(entry, Commit):
        return
    for _, candidate in puts(entry, KEYS.candidates):
        if candidate.get("term", 0) > past.term:
            other = candidate.get("id") != past.leader
            if past.leader and other:
                yield "takeover"
            if _braked(tier, candidate.get("id", "")) and past.leader:
                yield "braked takeover"
            running = tier.view.running
            if running is not None and not running["ended"]:
                yield "orphan"
    for _, request in puts(entry, KEYS.requests):
        if "released" in str(request.get("answer")) and request.get("kind") == "release":
            yield "released"
    if rolled_back(entry) is not None:
        yield "rollback"


def _runs(entry: Entry, tier: Tier, past: _Past) -> Iterator[str]:
    match entry:
        case Started(_, node, run):
            running: Record = tier.view.running or {}
            reasons = {"callback": "new callback", "asked": "asked"}
            if running.get("reason") in reasons:
                yield reasons[running["reason"]]
            if running.get("attempt", 1) > 1:
                yield "retried"
            yield from _timed(entry, running, tier, past)
            yield from _live(entry, past)
            if b'"left":[{' in entry.given:
                yield "left"
            lost = entry.given.partition(b'"lost":')[2].count(b'"seq"')
            if mass(lost, len(tier.members()), _settings(tier, node).brake):
                yield "brake over"
            if past.waited > entry.at - 2:
                yield "late start"
            if past.forgotten and run > past.forgotten:
                yield "restore forgets"
                past.forgotten = 0
        case Ended(_, _, ok):
            if not ok:
                yield "failed"
        case Commit():
            for _, run_entry in puts(entry, KEYS.runs):
                number, why = run_entry.get("run"), str(run_entry.get("why"))
                if run_entry.get("ok") is False and number not in past.started:
                    yield "withdrawn"
                if "went away" in why and number in past.ended:
                    yield "killed"
            if (raw := written(entry, KEYS.applied)) is not None:
                yield from _replaced(entry.at, decode(raw) or {}, tier, past)
            if written(entry, KEYS.running) is not None and KEYS.applied in past.unsure:
                yield "late acknowledgement"
                del past.unsure[KEYS.applied]
            if tier.lost and _braked(tier, past.leader) and _held(entry, "brake"):
                yield "braked"
            if _held(entry, "brake", "gap"):
                urgent = _settings(tier, past.leader).urgent
                yield from ["urgent held"] if tier.is_urgent(urgent, tier.listed) else []


def _timed(run: Started, running: Record, tier: Tier, past: _Past) -> Iterator[str]:
    """Yield what a run reaches that comes at its time, or for an urgent change."""
    settings, reason = _settings(tier, run.node), running.get("reason", "")
    past.reasons[run.run] = reason
    applied = tier.view.applied or {}
    if reason in ("again", "schedule"):
        yield reason
        changed = any(json.loads(run.given).values())
        yield from ["again with changes"] if changed else []
    if reason == "again":
        yield from ["again elsewhere"] if past.nodes.get(applied["run"]) != run.node else []
        yield from ["again restored"] if past.restored else []
    elif reason == "unacknowledged" and applied.get("again") is not None:
        yield from ["again late"] if "again" in past.reasons.values() else []
    if reason == "ensemble" and running.get("attempt") == 1:
        soon = run.at - past.changed < settings.damper / 1.5
        if soon and tier.is_urgent(settings.urgent, json.loads(run.pods)):
            yield "urgent"


def _live(run: Started, past: _Past) -> Iterator[str]:
    if run.live:
        yield "live" if len(run.live) == run.pods.count(b'"seq"') else "live in part"
        yield from ["live after"] if min(of for _, of in run.live) > past.ran else []
    past.ran = run.at


def _replaced(at: float, head: Record, tier: Tier, past: _Past) -> Iterator[str]:
    yield from ["note"] if head.get("note") else []
    again = (tier.view.applied or {}).get("again")
    if again is not None and at - past.acknowledged < again / 1.1:
        yield "again replaced"


def _held(commit: Commit, *holds: str) -> bool:
    plan = decode(written(commit, KEYS.plan) or b"")
    return plan is not None and plan.get("hold") in holds


def _pods(entry: Entry, tier: Tier, past: _Past) -> Iterator[str]:
    if isinstance(entry, Sent):
        nonce = past.nonces.get((entry.node, entry.id, entry.key))
        if nonce is not None and past.refused.get(entry.node) in ("Stale", "Gone"):
            yield "leap"
    if not isinstance(entry, Commit):
        return
    yield from (
        "swept" for name in deleted(entry, KEYS.registrations) if name in tier.view.registrations
    )
    for change in entry.changes:
        key = change.kv.key
        name = key.removeprefix(KEYS.pods)
        before = tier.view.pods.get(name) if key.startswith(KEYS.pods) else None
        now = decode(change.kv.value) if change.type == "put" else None
        if before is None or now is None:
            continue
        if now.get("id") != before["id"]:
            yield "usurped"
        elif change.kv.lease != tier.view.raw[key].lease:
            yield "new lease"
    for name, pod in puts(entry, KEYS.pods):
        if past.keys.get(pod.get("id", ""), name) != name:
            yield "moved"
    for name, registration in puts(entry, KEYS.registrations):
        if registration.get("left") and name not in tier.view.pods:
            yield "came late"


def _store(entry: Entry, tier: Tier, past: _Past) -> Iterator[str]:
    del past
    match entry:
        case Restore(_, kind):
            yield f"restore {kind}"
        case Refusal(_, _, name):
            names = {"NoSpace": "no space", "Denied": "denied", "Conflict": "conflict"}
            yield from [names[name]] if name in names else []
            yield from ["stale"] if name == "Stale" else []
        case Unsure(_, _, _, done):
            yield from ["unsure"] if done else []
        case FencedWrite():
            yield "fenced"
        case Replaced():
            yield "replaced"
        case Garbage():
            yield "garbage"
        case Commit():
            for change in entry.changes:
                before = tier.view.raw.get(change.kv.key)
                if before is not None and change.type == "put":
                    old, new = decode(before.value), decode(change.kv.value)
                    if old and new and NEXT in old and before.lease == change.kv.lease:
                        yield "other version"


def _published(entry: Entry, tier: Tier, past: _Past) -> Iterator[str]:
    del past
    match entry:
        case Published():
            yield "published" if entry.version is not None else "published refused"
        case Unsure(_, _, keys, done):
            yield from ["published unsure"] if done and KEYS.published in keys else []
        case Commit() if (raw := written(entry, KEYS.published)) is not None:
            before, now = current(tier.view) or {}, decode(raw) or {}
            if now["documents"] == before.get("documents", {}):
                yield "published again"


def _hooks(entry: Entry, tier: Tier, past: _Past) -> Iterator[str]:
    del tier
    if not isinstance(entry, Hook):
        return
    before = past.hooks.get(entry.node)
    match entry.name, entry.what, before and (before.name, before.what):
        case "silent", "begins", ("silent", "failed" | "killed"):
            yield "silent retried"
        case "silent", "begins", ended:
            yield "silent" if entry.node in past.heard else "silent start"
            yield from ["silent for heard"] if ended == ("heard", "ended for another") else []
        case "silent", "killed", _:
            yield "silent killed"
        case "heard", "begins", ("silent", _):
            yield "heard again"
        case _:
            pass


def _desired(entry: Entry, tier: Tier, past: _Past) -> Iterator[str]:
    view = tier.view
    match entry:
        case Started(_, node):
            running: Record = view.running or {}
            if running.get("reason") == "spec":
                yield "desired"
                given = json.loads(entry.given)
                pods = any(rows for name, rows in given.items() if name != "spec")
                yield from ["desired with changes"] if pods else []
                last = past.nodes.get((view.applied or {}).get("run", 0), node)
                yield from ["desired elsewhere"] if last != node else []
        case Commit():
            if (raw := written(entry, KEYS.spec)) is not None:
                running = view.running or {"ended": True}
                yield from ["desired during"] if not running["ended"] else []
                had = acknowledged_marks(view)
                back = marks_in(view) != had and marks_of(spec_of(raw)) == had
                yield from ["desired back"] if back else []
        case Answered(_, _, result):
            names = {"other": "desired race", "unknown": "desired unknown"}
            yield from [names[result]] if result in names else []
        case Unsure(_, _, keys, done):
            yield from ["desired unsure"] if done and KEYS.spec in keys else []


_LOOKS: tuple[Callable[[Entry, Tier, _Past], Iterator[str]], ...] = (
    *(_terms, _runs, _pods, _hooks, _store, _desired, _published),
)
