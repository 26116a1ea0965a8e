"""Random schedules as tests, one for each seed: the second stage of the mutation's oracle."""

import logging
import os
from collections.abc import Iterator

import pytest
from tests.simulation.schedule import THIRD, draw
from tests.simulation.simulate import judge

SEEDS = int(os.environ.get("KONTROL_TEST_MUTATION_SEEDS", "10"))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", [seed + THIRD * (seed % 2) for seed in range(SEEDS)])
def test_a_random_schedule_keeps_the_invariants(seed: int) -> None:
    assert not judge(draw(seed))
