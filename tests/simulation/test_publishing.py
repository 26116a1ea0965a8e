"""What is published, in simulation: histories that the checks refuse, and safeguards taken out."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.simulation.checker import CHECKS
from tests.simulation.history import KEYS, Kept, Published, Settled
from tests.simulation.schedule import FOURTH, Schedule, Step
from tests.simulation.script import A, Script
from tests.simulation.simulate import judge
from tests.support.memory.core import Core

from kontrol.agent.published import PublishedFile
from kontrol.ensemble.canonical import canonical
from kontrol.master.highwater import HighWater
from kontrol.master.publications import Publications
from kontrol.store.protocol import Compare

pytestmark = pytest.mark.usefixtures("quiet")

FENCE, RISE = "13 published under the fence", "13 published versions rise"
TOLD, LATEST = "13 as was told", "13 the latest everywhere"


def publish(script: Script, version: int, run: int, **documents: int) -> Script:
    record: dict[str, Any] = {
        "version": version,
        "term": script.term,
        "documents": documents,
        "runs": dict.fromkeys(documents, run),
    }
    script.commit((KEYS.published, canonical(record)))
    return script


def keep(script: Script, version: int, **documents: int) -> Script:
    content = json.dumps({"version": version, "documents": documents}).encode()
    script.add(Kept(script.at, "p1", content))
    return script


def told(script: Script, version: int | None, value: int = 1) -> Script:
    script.add(Published(script.at, "m1", script.run, "a", value, version))
    return script


def running() -> Script:
    """A run is under way."""
    script = Script()
    script.lead(5)
    script.join(A)
    script.start()
    return script


def former(script: Script) -> Script:
    """Another term has begun."""
    script.lead(6)
    script.term = 5
    return script


def settled(script: Script) -> dict[str, list[str]]:
    """Let the run end, and return the complaints about what is published."""
    script.end()
    script.acknowledge()
    script.add(Settled(script.at + 5, (), "", ("p1",)))
    found = {name: list(f(tuple(script.entries))) for name, f in CHECKS.items() if "13" in name}
    return {name: complaints for name, complaints in found.items() if complaints}


def test_what_a_well_behaved_tier_publishes_is_good() -> None:
    script = running()
    publish(script, 1, 1, a=1)
    told(script, 1)
    keep(script, 1, a=1)
    told(script, None, 7)
    publish(script, 2, 1, a=1, b=2)
    publish(script, 5, 1, a=3, b=2)
    told(script, 5, 3)
    keep(script, 5, a=3, b=2)
    assert settled(script) == {}


@pytest.mark.parametrize(
    ("history", "name", "text"),
    [
        (lambda s: (publish(s, 2, 1, a=1), publish(s, 2, 1, a=2)), FENCE, "comes after version 2"),
        (lambda s: publish(s, 1, 9, a=1), FENCE, "has a of run 9, which is not under way"),
        (
            lambda s: (s.end(), s.acknowledge(), publish(s, 1, 1, a=1), s.start()),
            FENCE,
            "has a of run 1, which is not under way",
        ),
        (lambda s: (s.view(ended=True), publish(s, 1, 1, a=1)), FENCE, "is not under way"),
        (
            lambda s: publish(former(s), 1, 1, a=1),
            FENCE,
            "is of term 5, and the leader's is 6",
        ),
        (
            lambda s: (publish(s, 2, 1, a=1), keep(s, 2, a=1), keep(s, 2, a=1)),
            RISE,
            "p1 gets 2 after 2",
        ),
        (
            lambda s: (publish(s, 2, 1, a=1), keep(s, 2, a=1), keep(s, 1, a=1)),
            RISE,
            "p1 gets 1 after 2",
        ),
        (lambda s: (publish(s, 2, 1, a=1), keep(s, 2, a=9)), RISE, "what was never published"),
        (lambda s: (publish(s, 2, 1, a=1), told(s, 2, 9)), TOLD, "was told of version 2"),
        (lambda s: told(s, 1), TOLD, "was told of version 1"),
        (lambda s: publish(s, 1, 1, a=1), LATEST, "p1 has None in the end"),
        (
            lambda s: (publish(s, 1, 1, a=1), keep(s, 1, a=1), publish(s, 2, 1, a=2)),
            LATEST,
            "p1 has",
        ),
    ],
    ids=range(12),
)
def test_what_breaks_it_is_seen(history: Callable[[Script], object], name: str, text: str) -> None:
    script = running()
    history(script)
    assert any(text in complaint for complaint in settled(script)[name])


PLAIN = Schedule(seed=FOURTH, masters=3, pods=3, ttl=10, fover=6, damper=0.5, steps=())
BOOT = tuple(Step(0.1 * i, "start", name) for i, name in enumerate(("m1", "m2", "m3")))
PODS = tuple(Step(0.5 + 0.1 * i, "start", f"p{i}") for i in (1, 2, 3))
CHANGES = tuple(Step(3 + 4 * i, "payload", f"p{1 + i % 3}") for i in range(20))

# Leaders come and go while runs publish, and some answers of the store are lost.
LEADERS = replace(
    PLAIN,
    publishes=True,
    steps=(
        *(*BOOT, *PODS, *CHANGES, Step(0, "slow", lasting=90)),
        *(Step(10 + 13 * i, "pause", f"m{1 + i % 3}", "", 12) for i in range(6)),
        *(Step(12 + 11 * i, "lossy", f"m{1 + i % 3}", "etcd", 6) for i in range(6)),
    ),
)

# The store is restored to what it was, with all masters away, and pods know better.
RESTORED = replace(
    PLAIN,
    publishes=True,
    steps=(
        *(*BOOT, *PODS, *CHANGES, Step(30, "snapshot"), Step(70, "restore", "lower", lasting=2)),
        *(Step(69, "crash", name, "", 5) for name in ("m1", "m2", "m3")),
    ),
)


def breaks(schedule: Schedule, name: str, seeds: range = range(FOURTH, FOURTH + 40)) -> bool:
    return any(
        f"invariant {name}" in complaint
        for seed in seeds
        for complaint in judge(replace(schedule, seed=seed))
    )


@pytest.mark.parametrize("schedule", [LEADERS, RESTORED])
def test_with_all_safeguards_the_schedules_pass(schedule: Schedule) -> None:
    for seed in range(FOURTH, FOURTH + 5):
        assert not judge(replace(schedule, seed=seed))


def test_without_what_masters_and_pods_remember_pods_do_not_get_what_is_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(HighWater, "saw_version", lambda _self, _version: None)
    monkeypatch.setattr(Publications, "ahead", property(lambda _: None))
    assert breaks(RESTORED, LATEST)


def test_without_the_comparison_on_the_pod_its_versions_fall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PublishedFile, "_have", lambda _self, _tier: 0)
    assert breaks(RESTORED, RISE, range(FOURTH, FOURTH + 3))


def test_without_the_heads_compared_a_late_write_publishes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heads = (KEYS.published, KEYS.running, KEYS.applied, KEYS.state)

    def ignored(compare: Compare) -> bool:
        return compare.key in heads or compare.key.startswith(KEYS.candidates)

    real = Core._holds
    monkeypatch.setattr(Core, "_holds", lambda self, c: ignored(c) or real(self, c))
    assert breaks(LEADERS, FENCE)
