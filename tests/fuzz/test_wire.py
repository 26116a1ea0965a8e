"""A few seconds of `python -m tests.fuzz.wire`, guided and at random."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.fuzz.wire import harmless, randomly, seeds

TOP = Path(__file__).parents[2]


def test_what_is_mutated_is_read_whole() -> None:
    for data in seeds():
        harmless(data)


def test_random_mutations_are_read_or_refused() -> None:
    randomly(1000, 7)


def test_guided_mutations_are_read_or_refused() -> None:
    """Where there is no atheris, they are random here too."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.wire", "--runs", "3000"],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("data", [b"", b"\0", b"\7\0", b"\0\0" + bytes(100)])
def test_short_inputs(data: bytes) -> None:
    harmless(data)
