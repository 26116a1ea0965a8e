"""A few seconds of what `python -m tests.rpc.fuzz` does for as long as one likes."""

from pathlib import Path

import pytest
from tests.rpc.fuzz import Fuzz, sound
from tests.rpc.keyed import cluster
from tests.rpc.mutants import Mutants


@pytest.mark.parametrize("keyed", [False, True], ids=["without keys", "with keys"])
async def test_random_and_mutated_input_does_no_harm(tmp_path: Path, keyed: bool) -> None:
    keys = cluster(tmp_path / "keys") if keyed else None
    report = await Fuzz(8000, 8000, keys).run()
    assert report.messages == 8000
    assert report.answers > 1000
    assert sound(report), report


def test_the_same_seed_makes_the_same_mutants() -> None:
    one, other = Mutants(7), Mutants(7)
    assert [one.message() for _ in range(200)] == [other.message() for _ in range(200)]
    assert [one.opening() for _ in range(50)] == [other.opening() for _ in range(50)]
