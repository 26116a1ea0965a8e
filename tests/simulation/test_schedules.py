"""A fixed set of random schedules keeps the invariants, and reaches what is rare.

KONTROL_TEST_SCHEDULES says how many, a third of each of the last two generations; CI runs a
thousand in all. Those that ever failed are run as well, from `seeds.txt`. `make simulate` runs
others.
"""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import pytest
from tests.simulation.checker import check
from tests.simulation.rare import reached
from tests.simulation.schedule import FOURTH, SECOND, THIRD, draw
from tests.simulation.simulate import simulate
from tests.simulation.suite import PROPERTY

pytestmark = pytest.mark.usefixtures("quiet")

COUNT = int(os.environ.get("KONTROL_TEST_SCHEDULES", "100"))
AT_ONCE = 10
TOP = Path(__file__).parents[2]


def failed() -> list[int]:
    """Return the seeds that found something, which a line of the file says."""
    lines = Path(__file__).with_name("seeds.txt").read_text("utf-8").splitlines()
    return [int(line.split()[0]) for line in lines if line and not line.startswith("#")]


FORMER, THIRDS = COUNT // 6, COUNT // 3
FIXED = [
    *(*range(FORMER), *range(SECOND, SECOND + FORMER), *range(THIRD, THIRD + THIRDS)),
    *(*range(FOURTH, FOURTH + COUNT - 2 * FORMER - THIRDS), *failed()),
]


@pytest.mark.timeout(240)  # a second or two each on a busy machine
@pytest.mark.parametrize("first", range(0, len(FIXED), AT_ONCE))
def test_random_schedules_keep_the_invariants(
    first: int, record_property: Callable[[str, object], None]
) -> None:
    counts: Counter[str] = Counter()
    for seed in FIXED[first : first + AT_ONCE]:
        schedule = draw(seed)
        history = simulate(schedule)
        complaints = check(history)
        assert not complaints, "\n".join(
            (f"replay with: python -m tests.simulation {seed}", str(schedule), *complaints)
        )
        if seed >= FOURTH:
            counts.update(reached(history))
    record_property(PROPERTY, dict(counts))


def fingerprint(seed: int) -> str:
    return hashlib.sha256(repr(simulate(draw(seed))).encode()).hexdigest()


@pytest.mark.parametrize("seed", [3, 4, SECOND + 5, THIRD + 5, FOURTH + 5])
def test_a_seed_is_one_history(seed: int) -> None:
    """Also in another process, where strings hash otherwise and sets of them have another order."""
    script = f"from tests.simulation.test_schedules import *; print(fingerprint({seed}))"
    other = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        cwd=TOP,
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    assert other.stdout.strip() == fingerprint(seed)


def test_schedules_differ() -> None:
    seeds = [first + i for first in (0, SECOND, THIRD, FOURTH) for i in range(200)]
    assert len({str(draw(seed)) for seed in seeds}) == 800


def test_the_first_schedules_mean_what_they_did() -> None:
    """Otherwise the seeds that found a fault no longer find it."""
    text = repr(
        [
            (s.masters, s.pods, s.ttl, s.fover, s.damper, [astuple(step) for step in s.steps])
            for s in map(draw, (0, 1, 2, 100570, 100981))
        ]
    )
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "692d2516aa3a00e06fcb88e525dacf2bab6dc02258802229507cc3cf652acf2e"
    )
