"""What goes wrong when: drawn from a seed before anything runs, and printed line by line.

Every fault ends by itself: a step says for how long. Times are seconds from the start.

Four generations of schedules: seeds below `FOURTH` mean what they always did, so that those which
once found something still do. From `SECOND` on they draw from the faults of two, a few kinds at a
time, so that some schedules are about few things. From `THIRD` on, most have callbacks that ask to
run again, runs every so often, or urgent changes. From `FOURTH` on pods have hooks; in most,
operators change the desired state, callbacks publish, and pods report live facts. New kinds of
faults belong to a new generation.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from random import Random

from tests.simulation.history import RESTORES, Settings

HORIZON = 12.0  # the length of the part with faults, in times of TTL; the second generation's is 8
SECOND = 1_000_000  # the first seed of the second generation
THIRD = 90_000_000
FOURTH = 150_000_000


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is done at `at`, to `who` (and `detail`), undone `lasting` seconds later."""

    at: float
    do: str
    who: str = ""
    detail: str = ""
    lasting: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.lasting:.3f} s" if self.lasting else ""
        return f"{self.at:9.3f}  {self.do} {self.who} {self.detail}".rstrip() + lasting


@dataclass(frozen=True, slots=True)
class Schedule:
    """A tier, its pods, and what happens to them. Times in seconds.

    `own` are the settings of masters that start with others, `skewed` says that clocks go wrong.
    `every` and `urgent` are as in `Settings`; `asks`: callbacks ask to run again, and leave notes.
    `publishes`: they publish, and agents follow. `live`: pods report live facts.
    """

    seed: int
    masters: int
    pods: int
    ttl: float
    fover: float
    damper: float
    steps: tuple[Step, ...]
    brake: float = 50.0
    age: float = 24 * 3600.0
    sweep: float = 3600.0
    skewed: bool = False
    own: dict[str, Settings] = field(default_factory=dict)
    horizon: float = HORIZON
    every: float = 0.0
    urgent: str = ""
    asks: bool = False
    publishes: bool = False
    live: bool = False

    @property
    def settings(self) -> Settings:
        """What masters are started with, if they have no settings of their own."""
        return Settings(
            ttl=self.ttl, fover=self.fover, damper=self.damper, ceiling=6 * self.damper,
            brake=self.brake, age=self.age, sweep=self.sweep, every=self.every, urgent=self.urgent,
        )  # fmt: skip

    def __str__(self) -> str:
        head = f"seed {self.seed}: {self.masters} masters, {self.pods} pods, {self.settings}"
        own = [f"{name}: {settings}" for name, settings in sorted(self.own.items())]
        clocks = ["clocks go wrong"] if self.skewed else []
        asks = ["callbacks ask to run again"] if self.asks else []
        publishes = ["callbacks publish"] if self.publishes else []
        live = ["pods report live facts"] if self.live else []
        told = (*own, *clocks, *asks, *publishes, *live)
        return "\n".join((head, *told, *map(str, self.steps)))


def draw(seed: int) -> Schedule:
    """Return the schedule of `seed`."""
    if seed >= FOURTH:
        return _fourth(seed)
    if seed >= THIRD:
        return _third(seed)
    return _second(seed) if seed >= SECOND else _first(seed)


def _first(seed: int) -> Schedule:
    rng = Random(f"schedule {seed}")
    masters, pods = rng.choice((1, 2, 3, 3)), rng.randint(1, 6)
    ttl, fover = rng.choice((6.0, 10.0, 25.0)), rng.choice((3.0, 6.0, 15.0))
    plain = Schedule(seed, masters, pods, ttl, fover, damper=0.0, steps=())
    steps = [*_steps(rng, plain, None), *_asking(Random(f"asking {seed}"), plain)]
    steps.sort(key=lambda step: step.at)
    return replace(plain, damper=rng.choice((0.5, 2.0, 5.0)), steps=tuple(steps))


def _second(seed: int) -> Schedule:
    rng = Random(f"schedule {seed}")
    ttl = rng.choice((6.0, 10.0, 25.0))
    fover = rng.choice((6.0, 6.0, 15.0) if ttl > 10 else (3.0, 6.0, 15.0))
    plain = Schedule(
        seed=seed,
        masters=rng.choice((1, 2, 2, 3, 3)),
        pods=rng.choice((1, 2, 3, 3, 4, 5, 6, 8)),
        ttl=ttl,
        fover=fover,
        damper=rng.choice((0.5, 2.0, 5.0)),
        steps=(),
        brake=rng.choice((50.0, 50.0, 50.0, 25.0, 80.0, 0.0)),
        age=rng.choice((1.5, 3.0)) * ttl,
        sweep=ttl / 2,
        skewed=rng.random() < 0.4,
        horizon=8.0,
    )
    draws = _Draws(rng, plain)
    kinds = rng.sample(sorted(_OTHERS), rng.choice((0, 1, 1, 2, 2, 3, 5)))
    few = rng.randint(2, 14 - 2 * len(kinds))
    steps = [*_steps(rng, plain, few), *_asking(rng, plain)]
    for kind in sorted(kinds):
        for _ in range(rng.choice((1, 1, 2))):
            steps += _OTHERS[kind](draws)
    steps.sort(key=lambda step: step.at)
    own = {m: draws.settings() for m in draws.masters} if draws.differ else {}
    return replace(plain, steps=tuple(steps), own=own)


def _third(seed: int) -> Schedule:
    rng, plain = Random(f"timed {seed}"), _second(seed)
    urgent = rng.choice(("", "", *_URGENT))
    long = rng.choice((1, 1, 8)) if urgent else 1  # a damper that is long shows what passes it
    every = rng.choice((0.0, 0.0, 2.0, 10.0, 30.0))
    now = replace(
        plain,
        damper=plain.damper * long,
        every=every,
        urgent=urgent,
        asks=rng.random() < 0.6,
    )
    own = {
        name: replace(
            settings,
            damper=settings.damper * long,
            ceiling=settings.ceiling * long,
            every=rng.choice((every, every, 0.0, 5.0)),
            urgent=rng.choice((urgent, urgent, *_URGENT)),
        )
        for name, settings in plain.own.items()
    }
    if plain.pods < 4 or rng.random() < 0.7:
        return replace(now, own=own)
    # What is urgent or timed takes most losses along one by one: more of those that are held.
    mass = list(_mass(_Draws(rng, plain)))
    at = mass[0].at + rng.uniform(1.2, 2.5) * plain.ttl
    release = Step(at, "ask", f"m{rng.randint(1, plain.masters)}", "release")
    more = [release] if rng.random() < 0.5 else []
    steps = sorted((*plain.steps, *mass, *more), key=lambda step: step.at)
    return replace(now, own=own, steps=tuple(steps))


def _fourth(seed: int) -> Schedule:
    plain = _third(seed)
    draws = _Draws(Random(f"silence {seed}"), plain)
    wants = _wants(Random(f"desired {seed}"), plain)
    published = _Draws(Random(f"publish {seed}"), plain)
    publishes, restored = (published.rng.random() < chance for chance in (0.6, 0.15))
    more = _restore(published) if publishes and restored else ()
    rng = Random(f"live {seed}")
    live = rng.random() < 0.7
    mutes = _mutes(rng, plain) if live else ()
    added = (*_silences(draws), *wants, *more, *mutes)
    steps = sorted((*plain.steps, *added), key=lambda step: step.at)
    return replace(plain, steps=tuple(steps), publishes=publishes, live=live)


def _mutes(rng: Random, plain: Schedule) -> Iterator[Step]:
    """Pods without live facts for a while."""
    for _ in range(rng.choice((0, 0, 1, 3))):
        at, long = rng.uniform(2, plain.horizon * plain.ttl), rng.uniform(0.2, 2) * plain.ttl
        yield Step(at, "no facts", f"p{rng.randint(1, plain.pods)}", "", long)


def _wants(rng: Random, plain: Schedule) -> Iterator[Step]:
    """Changes of the desired state; some race, and half come where the store is hard to reach."""
    hard = [step for step in plain.steps if step.do in _HARD and step.who[:1] in ("", "m")]
    masters = [f"m{i}" for i in range(1, plain.masters + 1)]
    for _ in range(rng.choice((0, 1, 2, 4, 8))):
        at, m = rng.uniform(2, plain.horizon * plain.ttl), rng.choice(masters)
        if hard and rng.random() < 0.5:
            fault = rng.choice(hard)
            at, m = fault.at + rng.uniform(-0.1, 0.9) * fault.lasting, fault.who or m
        key = rng.choice("aab")
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            value = rng.choice("0011222-")
            condition = rng.choice(("", "", f" if {rng.choice('012-')}"))
            yield Step(max(1.0, at), "want", m, f"{key} {value}{condition}")
            at, m = at + rng.choice((0.0, 0.001, 0.1, plain.damper)), rng.choice(masters)


_HARD = ("mute", "cut", "lossy", "stall", "isolate", "outage", "storm", "distant", "lag")
_URGENT = ("lost", "lost,left", "joined", "changed", "payload.state", "left,payload.state")


def _steps(rng: Random, plain: Schedule, count: int | None) -> Iterator[Step]:
    """What the first generation knows, `count` times, or some."""
    ttl, fover, horizon = plain.ttl, plain.fover, plain.horizon * plain.ttl
    ms = [f"m{i}" for i in range(1, plain.masters + 1)]
    ps = [f"p{i}" for i in range(1, plain.pods + 1)]
    for m in ms:
        yield Step(rng.uniform(0, 2), "start", m)
    for p in ps:
        yield Step(rng.uniform(0, ttl if rng.random() < 0.8 else horizon), "start", p)

    def lasting() -> float:
        """Draw a length: a blink, about a fail-over, about a TTL, or long."""
        return rng.uniform(0.1, 1.5) * rng.choice((0.3, fover / 3, fover, ttl / 3, ttl, 3 * ttl))

    for _ in range(rng.randint(2, 14) if count is None else count):
        at, long = rng.uniform(2, horizon), lasting()
        m, p = rng.choice(ms), rng.choice(ps)
        match rng.choice(_KINDS):
            case "crash" | "pause" | "stop" | "isolate" as do:
                yield Step(at, do, m, lasting=long)
            case "cut" | "lossy" | "stall" as do:
                pair = rng.choice(((m, "etcd"), (m, "etcd"), (p, m)))
                yield Step(at, do, *pair, lasting=long)
            case "masters":  # all of them together: what the gap is for
                for m in ms:
                    yield Step(at + rng.uniform(0, 1), rng.choice(("crash", "pause")), m, "", long)
            case "deploy":
                for m in ms:
                    yield Step(at + rng.uniform(0, ttl), "deploy", m, lasting=rng.uniform(0, 2))
            case "pod":
                how = rng.choice(("crash", "pause", "leave", "restart", "move", "isolate"))
                yield Step(at, how, p, lasting=0 if rng.random() < 0.2 else long)
            case "payload":
                for i in range(rng.randint(1, 4)):
                    yield Step(at + i * rng.uniform(0, 1), "payload", p)
            case "gone":  # half of the pods or more: what the brake is for
                for p in rng.sample(ps, rng.randint(len(ps) // 2, len(ps))):
                    yield Step(at, "crash", p, lasting=long)
            case "outage" | "storm" | "failing" | "slow" as do:
                yield Step(at, do, lasting=long)
            case "elect" | "compact" as do:
                yield Step(at, do)


def _asking(rng: Random, plain: Schedule) -> Iterator[Step]:
    """What operators ask for, in half of all schedules."""
    for _ in range(rng.choice((0, 0, 1, 2, 8))):
        kind = rng.choice(("run", "run", "rollback", "release"))
        at = rng.uniform(2, plain.horizon * plain.ttl)
        yield Step(at, "ask", f"m{rng.randint(1, plain.masters)}", kind)


_KINDS = (
    *("crash", "pause", "stop", "isolate", "cut", "cut", "lossy", "stall", "masters", "deploy"),
    *("pod", "pod", "pod", "payload", "payload", "gone"),
    *("outage", "storm", "failing", "slow", "slow", "elect", "compact"),
)


@dataclass
class _Draws:
    """What the further faults are drawn from."""

    rng: Random
    plain: Schedule
    differ: bool = False  # whether masters start with different settings
    callbacks: int = 2  # so many different ones there were

    @property
    def masters(self) -> list[str]:
        return [f"m{i}" for i in range(1, self.plain.masters + 1)]

    @property
    def at(self) -> float:
        """A time in the part with faults."""
        return self.rng.uniform(2, self.plain.horizon * self.plain.ttl)

    @property
    def long(self) -> float:
        """A length: about a fail-over, about a TTL, or longer."""
        plain = self.plain
        few = (plain.fover / 3, plain.fover, plain.ttl / 3, plain.ttl, 2 * plain.ttl)
        return self.rng.uniform(0.2, 1.5) * self.rng.choice(few)

    @property
    def master(self) -> str:
        return self.rng.choice(self.masters)

    def pod(self, *others: str) -> str:
        names = [f"p{i}" for i in range(1, self.plain.pods + 1)]
        return self.rng.choice([name for name in names if name not in others] or names)

    def settings(self) -> Settings:
        rng, now = self.rng, self.plain.settings
        damper = rng.choice((now.damper, 0.5, 3.0))
        return replace(
            now,
            ttl=rng.choice((now.ttl, now.ttl, 6.0, 12.0, 25.0)),
            fover=rng.choice((now.fover, now.fover, 3.0, 10.0)),
            damper=damper,
            ceiling=damper * rng.choice((2, 6)),
            brake=rng.choice((now.brake, now.brake, 30.0)),
        )


def _restore(draws: _Draws) -> Iterator[Step]:
    taken = draws.at
    kind = draws.rng.choice(sorted(RESTORES))
    yield Step(taken, "snapshot")
    later = taken + draws.rng.choice((0.1, 0.5, 2)) * draws.plain.ttl
    yield Step(later, "restore", kind, lasting=draws.rng.uniform(1, 5) + draws.long / 2)


def _conflict(draws: _Draws) -> Iterator[Step]:
    """Another pod at the address of one, another address for its id, or both: a second process."""
    how, who = draws.rng.choice(("reuse", "twin", "double")), draws.pod()
    other, at = draws.pod(who), draws.at
    if who != other:
        if draws.rng.random() < 0.5:
            yield Step(
                at - 0.5, draws.rng.choice(("crash", "leave", "pause")), other, "", draws.long
            )
        yield Step(at, how, who, other, draws.long + draws.plain.ttl / 2)


def _mute(draws: _Draws) -> Iterator[Step]:
    """Answers of the store that are lost, while there is something to be written."""
    at, m = draws.at, draws.master
    for _ in range(draws.rng.randint(2, 5)):
        long = draws.rng.uniform(0.5, draws.plain.fover / 3)
        yield Step(at, "mute", m, "etcd", long)
        run = at - draws.plain.damper - draws.rng.choice((0, 0.5, 1))
        yield Step(max(0, run), "payload", draws.pod())
        at += long + draws.rng.uniform(1, draws.plain.fover)


def _lag(draws: _Draws) -> Iterator[Step]:
    """Watches that lag, and a change of leader meanwhile."""
    at, long, rng = draws.at, draws.plain.fover + draws.long, draws.rng
    for m in draws.masters:
        if rng.random() < 0.7:
            yield Step(at, "lag", m, "etcd", long)
    for _ in range(rng.randint(1, 3)):
        yield Step(at + rng.random() * long, rng.choice(("payload", "leave")), draws.pod(), "", 5)
    how = rng.choice(("crash", "stop", "pause"))
    yield Step(at + rng.random() * long, how, draws.master, "", draws.long)


def _distant(draws: _Draws) -> Iterator[Step]:
    at, long = draws.at, draws.long
    for m in draws.masters if draws.rng.random() < 0.5 else [draws.master]:
        yield Step(at, "distant", m, "etcd", long + draws.plain.ttl)


def _full(draws: _Draws) -> Iterator[Step]:
    at, long = draws.at, draws.long + draws.plain.ttl
    yield Step(at, "full", lasting=long)
    for _ in range(draws.rng.randint(0, 3)):  # something to be written meanwhile
        yield Step(at + draws.rng.random() * long, "payload", draws.pod())


def _denied(draws: _Draws) -> Iterator[Step]:
    at, long = draws.at, draws.long
    for m in draws.masters if draws.rng.random() < 0.5 else [draws.master]:
        yield Step(at, "denied", m, "etcd", long)


def _settings(draws: _Draws) -> Iterator[Step]:
    """Masters that differ, or a change of settings that rolls over them, or a part of them."""
    if draws.rng.random() < 0.4:
        draws.differ = True
        return
    settings, at = draws.settings(), draws.at
    for m in draws.masters:
        text = f"ttl={settings.ttl:g} fover={settings.fover:g} damper={settings.damper:g} "
        text += f"ceiling={settings.ceiling:g} brake={settings.brake:g}"
        yield Step(at, "set", m, text, draws.rng.uniform(0.1, 2))
        at += draws.rng.uniform(1, draws.plain.ttl)


def _replace(draws: _Draws) -> Iterator[Step]:
    """Another callback in the place of the one there is, on every machine in its own time."""
    draws.callbacks += 1
    at, spread = draws.at, draws.rng.choice((0.1, 5, 90))
    for m in draws.masters:
        yield Step(at + draws.rng.uniform(0, spread), "replace", m, f"callback {draws.callbacks}")


def _upgrade(draws: _Draws) -> Iterator[Step]:
    """Masters of another version, one after the other, or some of them."""
    at, version = draws.at, draws.rng.choice(("later", "earlier", "later"))
    for m in draws.masters:
        if draws.rng.random() < 0.8:
            yield Step(at, "upgrade", m, version, draws.rng.uniform(0.1, 2))
        at += draws.rng.uniform(1, 2 * draws.plain.ttl)


def _garbage(draws: _Draws) -> Iterator[Step]:
    where = draws.rng.choice(
        ("pods/zz", "pods/~", "seqs/zz", "seqs/zz.1", "seqs/~.x", "requests/zz", "runs/zz", "plan")
    )
    what = draws.rng.choice(("", "{", "[]", "7", "null", '{"id": 5}', '"\\ud800"', "{}"))
    yield Step(draws.at, "garbage", where, what, draws.long)


def _mass(draws: _Draws) -> Iterator[Step]:
    """Most pods together, and the leader meanwhile: what the brake of a term is for."""
    at, rng, plain = draws.at, draws.rng, draws.plain
    names = [f"p{i}" for i in range(1, plain.pods + 1)]
    lost = rng.sample(names, rng.randint((len(names) + 1) // 2, len(names)))
    for p in lost:
        yield Step(at, "crash", p, "", rng.choice((1.5, 2.5, 4, 4)) * plain.ttl)
    for _ in range(rng.randint(0, 2)):
        how = rng.choice(("pause", "crash", "stop", "isolate"))
        yield Step(at + rng.uniform(0.5, 3.5) * plain.ttl, how, draws.master, "", draws.long)
    if rng.random() < 0.3:
        yield Step(at + rng.uniform(1, 3) * plain.ttl, "ask", draws.master, "release")


def _silences(draws: _Draws) -> Iterator[Step]:
    """Pods that are cut off, for about as long as they may be, or for good, some at their start."""
    rng, ttl = draws.rng, draws.plain.ttl
    for _ in range(rng.choice((0, 1, 2, 4))):
        pod, at = draws.pod(), draws.at
        long = ttl * rng.choice((0.5, 0.7, 0.9, 1.5, 3.0)) * rng.uniform(0.9, 1.1)
        yield Step(at, "isolate", pod, lasting=long)
        if rng.random() < 0.3:
            how = rng.choice(("restart", "pause", "payload"))
            yield Step(at + rng.uniform(0, 1) * long, how, pod, "", rng.uniform(0.1, 2))


_OTHERS: dict[str, Callable[[_Draws], Iterator[Step]]] = {
    "restore": _restore,
    "conflict": _conflict,
    "mute": _mute,
    "lag": _lag,
    "distant": _distant,
    "full": _full,
    "denied": _denied,
    "settings": _settings,
    "replace": _replace,
    "upgrade": _upgrade,
    "garbage": _garbage,
    "mass": _mass,
}
