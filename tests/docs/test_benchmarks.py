"""The page of benchmarks: every figure is there, as it was measured, without names and paths."""

import json
import re
from pathlib import Path

import pytest
from bench.__main__ import BENCHES

from docs import benchmarks_page

FOLDER = Path(__file__).parents[2] / "docs/figures"
RUNS = {path.stem: path.read_text("utf-8") for path in FOLDER.iterdir()}


def test_the_runs_are_those_of_benchmarks() -> None:
    assert RUNS
    assert set(RUNS) <= set(BENCHES)
    assert [run["bench"] for run in benchmarks_page.runs()] == [b for b in BENCHES if b in RUNS]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_shown_with_what_it_was_measured_on(name: str) -> None:
    run = json.loads(RUNS[name])
    page = benchmarks_page.render()
    assert f"{run['title']}\n{'-' * len(run['title'])}\n" in page
    assert benchmarks_page.measured_on(run["environment"]) in page
    for row in run["rows"]:
        for cell in (row["what"], row["figure"], row["limit"]):
            assert cell.strip().replace("`", "``") in page


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_no_path_and_no_name_of_a_machine(name: str) -> None:
    assert not re.search(r"/(?:home|root|tmp|work|usr|Users)\b|localhost|\.local\b", RUNS[name])
    known = {"date", "kontrol", "git", "python", "packages", "etcd", "system", "kernel", "cpu"}
    assert set(json.loads(RUNS[name])["environment"]) <= known | {"cores", "memory_gb", "load"}
