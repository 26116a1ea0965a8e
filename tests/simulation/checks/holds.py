"""What holds a run: the gap, the brake, the damper; and that nothing holds it for longer.

Clocks may be 5 percent off, so a bound of `t` seconds is judged as one of `t` times or by `SKEW`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.simulation.checks.desired import unseen
from tests.simulation.checks.runs import EMPTY
from tests.simulation.health import NEVER, TIMEOUT, Health
from tests.simulation.history import (
    KEYS,
    Commit,
    Ended,
    Entry,
    Fault,
    History,
    Process,
    Record,
    Restore,
    Settings,
    Started,
    StoreView,
    puts,
)

from kontrol.ensemble.canonical import canonical
from kontrol.ensemble.ensemble import digest_of
from kontrol.ensemble.pod import Pod

SKEW = 1.06  # how much faster a clock may go than another, that is within 5 percent
SLACK = 12.0  # seconds for what was under way when all got well: requests have a time-out of 6
FEWEST = 3  # lost pods that are a mass loss
ROLL_OUT = 60.0  # seconds that a new callback waits for those who have the old one


def silence_of_the_tier(history: History) -> Iterator[str]:
    """6: within TTL of an outage longer than TTL/3, of all masters, no run tells a pod lost.

    Where the masters' own TTLs differ, the one in force then may have been the longest of them.
    """
    health = Health()
    for entry in history:
        health.apply(entry)
        if isinstance(entry, Started):
            ttl = health.settings[entry.node].ttl
            lost = [pod["id"] for pod in json.loads(entry.given)["lost"]]
            over = health.since_outage(max(ttl, *health.ttls) / 3 * SKEW + 1, entry.at)
            if lost and over < ttl / SKEW:
                yield f"run {entry.run} tells {lost} lost, {over:.3f} s after an outage of the tier"


@dataclass
class Tier:
    """What the store says of the tier, and the pods lost of those of the last acknowledged run."""

    view: StoreView = field(default_factory=StoreView)
    health: Health = field(default_factory=Health)
    lists: dict[tuple[int, str], list[Record]] = field(default_factory=dict)  # by run and digest
    urgent: dict[tuple[int, str], str] = field(default_factory=dict)  # the setting of who ran it
    lost: frozenset[int] = frozenset()
    of: int = 0
    listed: list[Record] = field(default_factory=list)
    digest: str = EMPTY

    def apply(self, entry: Entry) -> bool:
        """Take an entry in; return whether it says anything of the store."""
        self.health.apply(entry)
        if isinstance(entry, Started):
            self.lists[entry.run, entry.digest] = json.loads(entry.pods)
            self.urgent[entry.run, entry.digest] = self.health.settings[entry.node].urgent
        if not self.view.apply(entry):
            return False
        listed = self.view.listed
        if listed != self.listed:
            self.listed = listed
            self.digest = digest_of(Pod.decode(canonical(pod)) for pod in listed)
        members = [pod["seq"] for pod in self.members()]
        live = {pod["seq"] for pod in listed}
        left = {
            registration["seq"]
            for registration in self.view.registrations.values()
            if registration["left"]
        }
        self.lost, self.of = frozenset(members) - live - left, len(members)
        return True

    def members(self) -> list[Record]:
        """Return the pods that the last acknowledged run was for."""
        applied = self.view.applied
        return self.lists.get((applied["run"], applied["digest"]), []) if applied else []

    def is_urgent(self, urgent: str, pods: list[Record], *, perhaps: bool = False) -> bool:
        """Tell whether a change from the last acknowledged run's pods to `pods` is urgent.

        With `perhaps`, also whether a leader may take it for one: it cannot know which values
        another setting's leader saw, nor when a pod that is lost comes to have left.
        """
        before = {pod["seq"]: pod for pod in self.members()}
        now = {pod["seq"]: pod for pod in pods}
        both = before.keys() & now.keys()
        changed = {seq for seq in both if before[seq] != now[seq]}
        moved = any(_state(before[seq]) != _state(now[seq]) for seq in changed)
        applied = self.view.applied or {}
        known = self.urgent.get((applied.get("run", 0), applied.get("digest", "")))
        gone = before.keys() - now.keys()
        lost = gone & self.lost
        kinds = {
            "joined": bool(now.keys() - before.keys()),
            "left": bool(gone if perhaps else gone - lost),
            "lost": bool(gone if perhaps else lost),
            "changed": bool(changed),
            "payload.state": moved or (perhaps and bool(changed) and known != urgent),
        }
        return any(kinds[name] for name in urgent.split(",") if name)


def _state(pod: Record) -> object:
    payload = pod["payload"]
    return payload.get("state") if isinstance(payload, dict) else None


def mass(lost: int, of: int, percent: float) -> bool:
    """Tell whether so many lost are a mass loss."""
    return percent > 0 and lost >= FEWEST and lost * 100 > percent * of


def brake_holds(history: History) -> Iterator[str]:
    """10: a mass loss is held in every term: for twice the TTL, or until it is released there."""
    tier = Tier()
    terms: dict[int, float] = {}  # when each began
    released: dict[int, float] = {}  # when the brake was released in a term
    spells: dict[float, tuple[float, float]] = {}  # the last mass loss, by what percent is one:
    # when it began and ended
    term = 0
    for entry in history:
        if isinstance(entry, Started):
            yield from _held(entry, tier, terms, released, spells)
        if not tier.apply(entry):
            continue
        if isinstance(entry, Commit):
            for _, candidate in puts(entry, KEYS.candidates):
                term = max(term, candidate.get("term", 0))
                terms.setdefault(term, entry.at)
            for _, request in puts(entry, KEYS.requests):
                answer = request.get("answer")
                if request.get("kind") == "release" and answer and "released" in answer["message"]:
                    released[term] = entry.at
        for settings in tier.health.settings.values():
            begin, end = spells.get(settings.brake, (0.0, float("-inf")))
            if not mass(len(tier.lost), tier.of, settings.brake):
                spells[settings.brake] = begin, min(end, entry.at)
            elif end < NEVER:
                # One that is over for less than the damper waits was not looked at.
                new = entry.at - end > settings.ceiling * SKEW + SLACK
                spells[settings.brake] = (entry.at if new else begin), NEVER


def _held(
    run: Started,
    tier: Tier,
    terms: dict[int, float],
    released: dict[int, float],
    spells: dict[float, tuple[float, float]],
) -> Iterator[str]:
    settings = tier.health.settings[run.node]
    lost, of = len(json.loads(run.given)["lost"]), len(tier.members())
    if not mass(lost, of, settings.brake):
        return
    begin, _ = spells.get(settings.brake, (run.at, run.at))
    if released.get(run.term, float("-inf")) >= begin:
        return
    held = run.at - max(begin, terms.get(run.term, run.at))
    if held < 2 * settings.ttl / SKEW:
        yield (
            f"run {run.run} of term {run.term} starts at {run.at:.3f} with {lost} of {of} lost, "
            f"held for {held:.3f} s"
        )


def damper_waits(history: History) -> Iterator[str]:
    """A run for a change waits for quiet, or for the ceiling.

    What a master finds when it starts is a change, too: the first one. A leader goes on with the
    burst that it saw as a standby, also where a former leader ran for a part of it. Since faults
    may have delayed what it saw, nothing is said then. What is urgent does not wait.
    """
    tier = Tier()
    seen: list[tuple[float, list[Record]]] = [(float("-inf"), [])]
    last, ran, ran_on = 0, float("-inf"), ""  # the last run: the list, when, and on which master
    broken = float("-inf")  # when the last fault began or ended
    for entry in history:
        if isinstance(entry, Fault):
            broken = entry.at
        if isinstance(entry, Started):
            pods = json.loads(entry.pods)
            matches = [i for i in range(last, len(seen)) if seen[i][1] == pods]
            running = tier.view.running or {}
            fresh = running.get("reason") == "ensemble" and running.get("attempt") == 1
            settings = tier.health.settings[entry.node]
            if tier.is_urgent(settings.urgent, pods, perhaps=True):
                fresh = False
            if matches and matches[0] > last and fresh:
                quiet, first = entry.at - seen[matches[0]][0], entry.at - seen[last + 1][0]
                up = tier.health.since_start(entry.node, entry.at)
                first = max(first, up) if up < entry.at - ran else first
                standing = tier.health.fault_since(entry.at) < NEVER
                lately = entry.at - broken < settings.ceiling * SKEW + TIMEOUT
                if ran_on != entry.node and (standing or lately):
                    first = max(first, settings.ceiling)
                elif ran_on != entry.node:
                    changes = [at for at, _ in seen[1 : matches[0] + 1]]
                    burst = _burst(changes, entry.at - up, settings.damper * SKEW)
                    first = max(first, entry.at - burst)
                if quiet < settings.damper / SKEW and first < settings.ceiling / SKEW:
                    yield (
                        f"run {entry.run} at {entry.at:.3f} comes {quiet:.3f} s after the last "
                        f"change, {first:.3f} s after the first"
                    )
            last, ran, ran_on = matches[0] if matches else last, entry.at, entry.node
        if tier.apply(entry) and tier.listed != seen[-1][1]:
            seen.append((entry.at, tier.listed))


def _burst(changes: Sequence[float], start: float, quiet: float) -> float:
    """Return when the burst of the last change began, for a process that started at `start`."""
    begin = changes[-1]
    for at in reversed((start, *(at for at in changes if at > start))):
        if begin - at > quiet:
            break
        begin = at
    return begin


def on_time(history: History) -> Iterator[str]:
    """2, 10: what is due runs in time, under a leader without faults: nothing holds it forever.

    In time is: once the damper's quiet is over, and its ceiling whatever changes; the gap, if pods
    are lost; the brake, if many are; and a minute for a new callback. For what is urgent it is the
    same without the damper; and for what was asked for, and every so often, the time for that,
    unless pods are lost. Of what was tried and failed nothing is said: that waits for longer and
    longer.
    """
    tier = Tier()
    alive: set[int] = set()
    since: dict[str, float] = {}  # for how long each reason has stood
    facts: dict[str, object] = {}
    limits: dict[str, float] = {}
    for entry in history:
        for name, limit in limits.items():
            if entry.at - since[name] > limit:
                yield f"at {entry.at:.3f}: {name} has been due for {entry.at - since[name]:.3f} s"
                since[name] = NEVER  # said once
        if not isinstance(entry, _TELLING):
            continue
        tier.apply(entry)
        match entry:
            case Started(_, _, run):
                alive.add(run)
            case Ended(_, run):
                alive.discard(run)
            case Restore():
                facts.clear()
        limits, now = _limits(tier, alive), _facts(tier)
        since = {
            name: since[name] if name in since and facts.get(name) == now[name] else entry.at
            for name in limits
        }
        facts = now


_TELLING = (Commit, Restore, Process, Fault, Started, Ended)


def _leads(tier: Tier) -> Settings | None:
    """Return the settings of the leader, if it is in its term and no fault is between.

    A master that campaigns again after its term waits for its own former candidacy to expire.
    """
    leader = tier.view.leader
    if leader is None or "term" not in leader or not tier.health.has_store(leader["id"]):
        return None
    own = [it for it in tier.view.candidates.values() if it["id"] == leader["id"]]
    return tier.health.settings[leader["id"]] if len(own) == 1 else None


def _limits(tier: Tier, alive: set[int]) -> dict[str, float]:
    """Return what is due, and how many seconds it may be."""
    settings, view = _leads(tier), tier.view
    if settings is None or view.running is not None or alive:
        return {}
    applied = view.applied
    due = {} if tier.lost else _timed(applied or {}, settings)
    if unseen(view) and not tier.lost:
        due["the desired state"] = SLACK
    if tier.digest == (applied["digest"] if applied else EMPTY):
        leader = view.leader or {}
        if applied is not None and leader.get("fingerprint") != applied["fingerprint"]:
            due["the callback"] = (ROLL_OUT + settings.damper) * SKEW + SLACK
        return due
    ttl = max(settings.ttl, (applied or {}).get("ttl") or 0.0)  # some pods may have the former
    gap = ttl if tier.lost else 0.0
    braked = mass(len(tier.lost), tier.of, settings.brake)
    hold = 2 * ttl + SLACK if braked else gap
    due["a change"] = (settings.damper + hold) * SKEW + SLACK
    if tier.is_urgent(settings.urgent, tier.listed):
        due["an urgent change"] = hold * SKEW + SLACK
    if not tier.lost:
        due["one change after another"] = settings.ceiling * SKEW + SLACK
    return due


def _timed(applied: Record, settings: Settings) -> dict[str, float]:
    """Return what is due at its time, and after how many seconds at the latest."""
    times = {"what was asked for": applied.get("again"), "the schedule": settings.every}
    return {name: after * SKEW + SLACK for name, after in times.items() if after}


def _facts(tier: Tier) -> dict[str, object]:
    """Return what each reason is about: if that moves, it is due again."""
    view = tier.view
    leader = view.leader or {}
    name = leader.get("id", "")
    term = (leader.get("term"), name, tier.health.has_store(name))
    applied = (view.applied or {}).get("run")
    return {
        "the callback": (term, applied, leader.get("fingerprint")),
        "a change": (term, applied, tier.digest, tier.lost),
        "one change after another": (term, applied),
        "an urgent change": (term, applied, tier.lost),
        "the desired state": (term, applied, view.raw.get(KEYS.spec)),
        "what was asked for": (term, applied),
        "the schedule": (term, applied),
    }
