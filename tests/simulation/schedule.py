"""What goes wrong when: drawn from a seed before anything runs, and printed line by line.

Every fault ends by itself: a step says for how long. Times are seconds from the start.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

HORIZON = 12.0  # the length of the troubled part, in times of TTL


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is done at `at`, to `who` (and `whom`), undone `lasting` seconds later."""

    at: float
    do: str
    who: str = ""
    whom: str = ""
    lasting: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.lasting:.3f} s" if self.lasting else ""
        return f"{self.at:9.3f}  {self.do} {self.who} {self.whom}".rstrip() + lasting


@dataclass(frozen=True, slots=True)
class Schedule:
    """A tier, its pods, and what happens to them. Times in seconds."""

    seed: int
    masters: int
    pods: int
    ttl: float
    fover: float
    damper: float
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        head = (
            f"seed {self.seed}: {self.masters} masters, {self.pods} pods, ttl {self.ttl}, "
            f"fover {self.fover}, damper {self.damper}"
        )
        return "\n".join((head, *map(str, self.steps)))


def draw(seed: int) -> Schedule:
    """Return the schedule of `seed`."""
    rng = Random(f"schedule {seed}")
    masters, pods = rng.choice((1, 2, 3, 3)), rng.randint(1, 6)
    ttl, fover = rng.choice((6.0, 10.0, 25.0)), rng.choice((3.0, 6.0, 15.0))
    steps = [
        *_steps(rng, masters, pods, ttl, fover),
        *_asking(Random(f"asking {seed}"), masters, ttl),
    ]
    return Schedule(
        seed=seed,
        masters=masters,
        pods=pods,
        ttl=ttl,
        fover=fover,
        damper=rng.choice((0.5, 2.0, 5.0)),
        steps=tuple(sorted(steps, key=lambda step: step.at)),
    )


def _steps(rng: Random, masters: int, pods: int, ttl: float, fover: float) -> Iterator[Step]:
    ms = [f"m{i}" for i in range(1, masters + 1)]
    ps = [f"p{i}" for i in range(1, pods + 1)]
    horizon = HORIZON * ttl
    for m in ms:
        yield Step(rng.uniform(0, 2), "start", m)
    for p in ps:
        yield Step(rng.uniform(0, ttl if rng.random() < 0.8 else horizon), "start", p)

    def lasting() -> float:
        """Draw a length: a blink, about a fail-over, about a TTL, or long."""
        return rng.uniform(0.1, 1.5) * rng.choice((0.3, fover / 3, fover, ttl / 3, ttl, 3 * ttl))

    for _ in range(rng.randint(2, 14)):
        at, long = rng.uniform(2, horizon), lasting()
        m, p = rng.choice(ms), rng.choice(ps)
        match rng.choice(_KINDS):
            case "crash" | "pause" | "stop" | "isolate" as do:
                yield Step(at, do, m, lasting=long)
            case "cut" | "lossy" | "stall" as do:
                pair = rng.choice(((m, "etcd"), (m, "etcd"), (p, m)))
                yield Step(at, do, *pair, lasting=long)
            case "masters":  # all of them at once: what the gap is for
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


def _asking(rng: Random, masters: int, ttl: float) -> Iterator[Step]:
    """What operators ask for, in half of all schedules."""
    for _ in range(rng.choice((0, 0, 1, 2, 8))):
        kind = rng.choice(("run", "run", "rollback", "release"))
        at = rng.uniform(2, HORIZON * ttl)
        yield Step(at, "ask", f"m{rng.randint(1, masters)}", kind)


_KINDS = (
    *("crash", "pause", "stop", "isolate", "cut", "cut", "lossy", "stall", "masters", "deploy"),
    *("pod", "pod", "pod", "payload", "payload", "gone"),
    *("outage", "storm", "failing", "slow", "slow", "elect", "compact"),
)
