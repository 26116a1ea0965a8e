"""Lists the mutants of the control loop that no test notices: `python -m tests.mutation [PATH...]`.

For each file it prints how many mutants there are and what killed them, then those that survived.
A survivor that is explained in `survivors.toml` is no failure. Exit status 1 if another survives,
or if an explained one is killed or does not exist; 2 if tests fail without any mutant. Verdicts are
kept in `.pytest_cache` until the code or the tests change.
"""

import argparse
import contextlib
import io
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from tests.mutation.explained import TABLE, Explained, outdated, read
from tests.mutation.mutants import Facts, Mutant, find
from tests.mutation.oracle import SURVIVED, TIMEOUT, UNREACHED, Oracle, Verdict

TOP = Path(__file__).parents[2]
SOURCE = TOP / "src" / "kontrol"
UNDER_TEST = (
    *("master/leader", "master/registry", "master/records"),
    *("master/election.py", "master/term.py", "master/callback.py", "master/fingerprint.py"),
    *("master/runfiles.py", "ensemble/holds.py", "ensemble/ensemble.py", "ensemble/urgent.py"),
)
UNIT, SIMULATION = "unit test", "simulation"
TESTS = (
    *("tests/ensemble", "tests/master"),
    *("tests/simulation/test_mutations.py", "tests/mutation/seeds.py"),
)
# Those that take a safeguard out and look for the consequences do not test the code.
NOT_THESE = "not (test_mutations and not all_safeguards)"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, help="files and folders; default: all")
    parser.add_argument("--only", default="", metavar="NAME", help="mutants whose name holds this")
    parser.add_argument("--list", action="store_true", help="list the mutants, and run nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="default: the CPUs")
    parser.add_argument("--seeds", type=int, default=100, help="how many random schedules to run")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files and folders of tests")
    parser.add_argument("--table", type=Path, default=TABLE, help="the survivors explained")
    parser.add_argument("--cache", type=Path, help="the folder for verdicts; default: pytest's")
    parser.add_argument(
        "--spare",
        type=float,
        default=3.0,
        help="seconds of CPU time, besides five times its own, after which a test hangs",
    )
    arguments = parser.parse_args()
    files = expand(arguments.paths)
    everything = sorted({*expand(), *files})
    mutants = collect(files)
    chosen = [mutant for mutant in mutants if arguments.only in mutant.name]
    if arguments.list:
        say(f"{m.name}\n    {m.before}  ->  {m.after}" for m in chosen)
        return 0
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # after cleaning up
    stages = (UNIT, SIMULATION)
    oracle = Oracle(chosen, everything, arguments.jobs, arguments.spare, stages, stage, progress)
    os.environ["KONTROL_TEST_MUTATION_SEEDS"] = str(arguments.seeds)  # read by seeds.py
    failure = judge(oracle, arguments.tests, arguments.cache)
    if failure:
        say([failure])
        return 2
    say(summary(chosen, oracle.verdicts))
    say([f"{len(chosen)} mutants in {time.monotonic() - started:.0f} s"])
    names = {name_of(path) for path in files}
    table = {
        name: one
        for name, one in read(arguments.table).items()
        if one.file in names and arguments.only in name
    }
    wrong = list(complaints(chosen, oracle.verdicts, table))
    say(wrong)
    return int(bool(wrong))


def say(lines: Iterable[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def expand(paths: Sequence[Path] = ()) -> list[Path]:
    """Return the files of the code under test, or of `paths`."""
    found: list[Path] = []
    for path in paths or [SOURCE / name for name in UNDER_TEST]:
        if not path.exists():
            raise SystemExit(f"there is no {path}")
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return [path.resolve() for path in found]


def collect(files: Sequence[Path] = ()) -> list[Mutant]:
    """Return the mutants of `files`, by default those of the code under test."""
    facts = Facts.of({*expand(), *files})
    return [m for path in files or expand() for m in find(path, name_of(path), facts)]


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE)) if path.is_relative_to(SOURCE) else path.name


def stage(test: str) -> str:
    """Return the stage of a test, by its node id."""
    return SIMULATION if test.startswith(("tests/simulation", "tests/mutation")) else UNIT


def judge(oracle: Oracle, tests: Sequence[str], cache: Path | None) -> str:
    """Run pytest with the oracle; returns what it printed if it could not judge."""
    options = ["-q", "-s", "-p", "no:xdist", "-k", NOT_THESE, f"--rootdir={TOP}"]
    if cache is not None:
        options += ["-o", f"cache_dir={cache}"]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = pytest.main([*options, *tests], plugins=[oracle])
    return "" if status == pytest.ExitCode.OK else output.getvalue()


def progress(mutant: Mutant, verdict: Verdict, left: int) -> None:
    sys.stderr.write(f"{left:5} {verdict.outcome:10} {mutant.name} {verdict.by}\n")


def summary(mutants: Sequence[Mutant], verdicts: Mapping[str, Verdict]) -> Iterator[str]:
    """Yield the table: a line for each file, and the sum."""
    columns = (UNIT, SIMULATION, TIMEOUT, SURVIVED, UNREACHED)
    counts: dict[str, Counter[str]] = {}
    for mutant in mutants:
        for row in (mutant.file, "total"):
            counts.setdefault(row, Counter())[verdicts[mutant.name].outcome] += 1
    total = counts.pop("total", Counter())
    yield f"{'':36}{'mutants':>10}" + "".join(f"{name:>12}" for name in columns)
    for file, count in [*counts.items(), ("", total)]:
        yield f"{file:36}{count.total():10}" + "".join(f"{count[name]:12}" for name in columns)


def complaints(
    mutants: Sequence[Mutant], verdicts: Mapping[str, Verdict], table: Mapping[str, Explained]
) -> Iterator[str]:
    """Say which mutants survive unexplained, and which explanations do not hold."""
    yield from outdated(table, {mutant.name: mutant.before for mutant in mutants})
    for mutant in mutants:
        verdict = verdicts[mutant.name]
        if mutant.name in table and verdict.killed:
            yield f"{mutant.name} is explained, and killed by {verdict.by}: remove the explanation"
        if mutant.name not in table and not verdict.killed:
            path = os.path.relpath(mutant.path)
            yield f"{verdict.outcome}: {mutant.name}\n    {path}:{mutant.first}"
            yield f"    {mutant.before}  ->  {mutant.after}"


if __name__ == "__main__":
    sys.exit(main())
