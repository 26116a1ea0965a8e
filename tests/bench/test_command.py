"""`python -m bench`: every benchmark is named, and a run is written without names and paths."""

import importlib.util
import inspect
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from bench.__main__ import ALONE, BENCHES, load, main, parser, value
from bench.plot import fleet
from bench.table import Row, columns

from bench import Option, imports, report

ROOT = Path(__file__).parents[2]
NOT_BENCHES = {
    *("__init__", "__main__", "agents", "follower", "generator", "limits", "load", "network"),
    *("plot", "process", "redis_tiers", "redis_writes", "report", "stage", "table", "zmtp"),
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


class Nothing:
    """A benchmark that measures nothing, and counts how often."""

    TITLE = "Nothing"
    OPTIONS: Mapping[str, Option] = {}

    def __init__(self) -> None:
        self.runs = 0

    async def run(self, **_: object) -> list[Row]:
        self.runs += 1
        return [Row("nothing", "0")]


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Nothing:
    """Replace all benchmarks, in an empty folder."""
    bench = Nothing()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.__main__.load", lambda _: bench)
    return bench


@pytest.mark.parametrize(
    ("given", "file"),
    [
        (".", "writes.json"),
        ("made/for.this", "made/for.this/writes.json"),
        ("run.json", "run.json"),
        ("made/run.json", "made/run.json"),
    ],
)
def test_one_run_is_written_to_a_folder_or_to_a_file_that_ends_in_json(
    nothing: Nothing, given: str, file: str
) -> None:
    main(["writes", "--json", given])
    assert nothing.runs == 1
    assert [path for path in Path().rglob("*") if path.is_file()] == [Path(file)]
    assert json.loads(Path(file).read_text("utf-8"))["bench"] == "writes"


def test_a_name_may_follow_the_options(nothing: Nothing) -> None:
    main(["--quick", "--json", "run.json", "writes"])
    assert nothing.runs == 1
    assert json.loads(Path("run.json").read_text("utf-8"))["bench"] == "writes"


def test_all_runs_are_written_to_a_folder(nothing: Nothing) -> None:
    main(["--json", "made"])
    names = {path.name for path in Path("made").iterdir()}
    assert names == {f"{name}.json" for name in BENCHES if name not in ALONE}
    assert nothing.runs == len(names)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["writes", "--json", "folder.json"], "folder.json cannot be written: Is a directory"),
        (["writes", "--json", "taken"], "taken cannot be written: File exists"),
        (["writes", "--json", "taken/run.json"], "taken cannot be written: File exists"),
        (["writes", "--json", "taken/of"], "taken/of cannot be written: Not a directory"),
        (["--json", "taken"], "taken cannot be written: File exists"),
        (["--json", "run.json"], "--json run.json: one file for several runs. Give a folder"),
    ],
)
def test_nothing_is_measured_if_it_could_not_be_written(
    nothing: Nothing, words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder.json").mkdir()
    Path("taken").write_bytes(b"")
    with pytest.raises(SystemExit):
        main(words)
    assert problem in capsys.readouterr().err
    assert nothing.runs == 0


async def test_a_plot_that_could_not_be_written_is_an_error_before_a_fleet_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(agents: int, minutes: float) -> Row:
        raise AssertionError("measured")

    monkeypatch.setattr("bench.fleet._one", never)
    with pytest.raises(IsADirectoryError):
        await load("fleet").run(agents=(1,), minutes=0.0, plot=str(tmp_path))


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


@pytest.mark.parametrize("module", [*imports.BARE, *imports.ON_TOP])
def test_every_module_whose_import_is_measured_exists(module: str) -> None:
    assert importlib.util.find_spec(module) is not None
