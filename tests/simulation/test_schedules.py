"""Random schedules keep the invariants; one seed is one history.

KONTROL_TEST_SCHEDULES says how many; CI runs a thousand.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.simulation.schedule import draw
from tests.simulation.simulate import judge, simulate

pytestmark = pytest.mark.usefixtures("quiet")

SCHEDULES = int(os.environ.get("KONTROL_TEST_SCHEDULES", "100"))
AT_ONCE = 10
TOP = Path(__file__).parents[2]


@pytest.mark.timeout(240)  # a second or two each on a busy machine
@pytest.mark.parametrize("first", range(0, SCHEDULES, AT_ONCE))
def test_random_schedules_keep_the_invariants(first: int) -> None:
    for seed in range(first, first + AT_ONCE):
        schedule = draw(seed)
        complaints = judge(schedule)
        assert not complaints, "\n".join(
            (f"replay with: python -m tests.simulation {seed}", str(schedule), *complaints)
        )


def fingerprint(seed: int) -> str:
    return hashlib.sha256(repr(simulate(draw(seed))).encode()).hexdigest()


@pytest.mark.parametrize("seed", [3, 4, 5])
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
    assert len({str(draw(seed)) for seed in range(200)}) == 200
