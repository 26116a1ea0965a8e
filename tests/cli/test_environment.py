"""Whose packages `kontrol` and `automaton` are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import kontrol

SOURCE = Path(kontrol.__file__).parents[1]


def run(*path: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, "-m", "kontrol", "--version"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_an_environment_of_its_own_is_not_remarked_upon() -> None:
    done = run(SOURCE)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_automaton_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "automaton").mkdir()
    (tmp_path / "automaton" / "__init__.py").write_text("")
    done = run(tmp_path, SOURCE)
    assert done.returncode == 2
    assert (
        f"the package automaton in {tmp_path / 'automaton'} belongs to another project"
        in done.stderr
    )
    assert "kontrol-loop" in done.stderr


@pytest.mark.parametrize("name", ["kontrol-9.1.0.dist-info", "automaton-1.0.egg-info"])
def test_another_distribution_beside_it_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / "kontrol_loop-1.0.0.dist-info").mkdir()
    done = run(SOURCE, tmp_path)
    assert done.returncode == 0
    assert f"warning: {tmp_path / name} is of another project" in done.stderr
    assert "kontrol_loop" not in done.stderr
