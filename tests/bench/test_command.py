"""`python -m bench`: every benchmark is named, and a run is written without names and paths."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from bench.__main__ import BENCHES, load, parser, value
from bench.plot import fleet
from bench.table import Row, columns

from bench import report

ROOT = Path(__file__).parents[2]
NOT_BENCHES = {
    *("__init__", "__main__", "agents", "generator", "limits", "load", "plot", "process"),
    *("report", "stage", "table", "zmtp"),
}


def test_every_module_is_a_benchmark_that_is_named_or_a_part_of_them() -> None:
    modules = {path.stem for path in (ROOT / "bench").glob("*.py")}
    assert modules == set(BENCHES) | NOT_BENCHES


@pytest.mark.parametrize("name", BENCHES)
def test_a_benchmark_takes_its_options_and_has_a_quick_run(name: str) -> None:
    bench = load(name)
    assert bench.TITLE
    assert set(inspect.signature(bench.run).parameters) == set(bench.OPTIONS)
    for option in bench.OPTIONS.values():
        assert type(option.default) is type(option.quick)
    assert parser(name).parse_args([]).json is None


def test_options_have_the_type_of_their_default() -> None:
    assert value((1,), "10,20") == (10, 20)
    assert value(2.0, "0.5") == 0.5
    assert value(1, "7") == 7
    assert parser("fleet").parse_args(["--agents", "1,2"]).agents == (1, 2)


def test_without_a_name_the_benchmarks_are_listed() -> None:
    command = [sys.executable, "-m", "bench", "--list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(BENCHES)


def test_a_quick_run_prints_a_table_and_writes_json_without_names_and_paths(
    tmp_path: Path,
) -> None:
    path = tmp_path / "made" / "run.json"
    command = [sys.executable, "-m", "bench", "keepalives", "--quick", "--seconds", "0.2"]
    command += ["--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "master's CPU for each" in done.stdout
    assert done.stderr == ""
    text = path.read_text("utf-8")
    assert str(ROOT) not in text
    assert str(tmp_path) not in text
    run = json.loads(text)
    assert (run["bench"], run["options"]["seconds"]) == ("keepalives", 0.2)
    assert {"date", "kontrol", "git", "python", "packages", "etcd", "cpu", "cores", "load"} <= set(
        run["environment"]
    )
    assert run["environment"]["etcd"][0].isdigit()
    values = {name: each for row in run["rows"] for name, each in row["values"].items()}
    assert values["acknowledged_per_s"] > 0
    assert values["broken"] == 0


def test_options_that_are_paths_are_not_written() -> None:
    run = report.document("fleet", "Fleet", [], {"plot": "/home/x/fleet.svg", "minutes": 1.0}, {})
    assert run["options"] == {"minutes": 1.0}


def test_a_table_has_the_columns_that_are_used() -> None:
    rows = [Row("a", "1", goal="2"), Row("b", "3")]
    assert columns(rows) == [("what", "measured", "goal"), ("a", "1", "2"), ("b", "3", "")]


@pytest.mark.parametrize("count", [1, 5])
def test_the_plot_of_a_fleet_has_a_point_for_each_number_of_agents(count: int) -> None:
    points = [
        {"agents": 1000.0 * n, "master_cpu": 2.5 * n, "etcd_cpu": n, "resident_mb": 40.0 + n}
        for n in range(1, count + 1)
    ]
    root = ET.fromstring(fleet(points))  # noqa: S314 - our own
    circles = [each for each in root.iter() if each.tag.endswith("circle")]
    assert len(circles) == 3 * count
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert all(0 <= float(each.attrib["cx"]) <= width for each in circles)
    assert all(0 <= float(each.attrib["cy"]) <= height for each in circles)
