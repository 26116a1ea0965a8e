"""The tool finds the mutants of a toy that survive; its table of survivors matches this code."""

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.mutation.__main__ import TOP, collect
from tests.mutation.explained import outdated, read
from tests.mutation.mutants import Facts, find

TOY = """
def is_adult(age: int) -> bool:
    return age >= 18


def count_down(n: int) -> int:
    while n > 0:
        n -= 1
    return n


def not_called(a: bool, b: bool) -> bool:
    return a and b
"""

CASES = """
import toy


def test_the_old_and_the_young() -> None:
    assert toy.is_adult(80)
    assert not toy.is_adult(3)


def test_it_ends() -> None:
    assert toy.count_down(0) == 0
"""

SURVIVORS = {
    "toy.py:is_adult:shift:1": "age >= 18",
    "toy.py:not_called:drop:1": "a and b",
    "toy.py:not_called:drop:2": "a and b",
}


@dataclass
class Toy:
    folder: Path

    def run(self, explained: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
        """Run the tool on the toy, with a table that explains some of its mutants."""
        table = self.folder / "survivors.toml"
        rows = "\n".join(f"{name!r} = {before!r}" for name, before in explained.items())
        table.write_text(f"[[explained]]\nreason = 'a toy'\n[explained.mutants]\n{rows}\n")
        return subprocess.run(
            [
                *(sys.executable, "-m", "tests.mutation", f"{self.folder}/toy.py", *options),
                *("--tests", f"{self.folder}/cases.py", "--table", f"{table}"),
                *("--cache", f"{self.folder}/cache", "--spare", "0.3"),
            ],
            env={**os.environ, "PYTHONPATH": f"{TOP}:{self.folder}", "PYTEST_ADDOPTS": ""},
            cwd=TOP,
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
        )


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "cases.py").write_text(CASES)
    return Toy(tmp_path)


def test_it_tells_killed_from_surviving_and_writes_nothing_into_the_source(toy: Toy) -> None:
    before = {path.name for path in toy.folder.iterdir()}
    ran = toy.run({})
    assert ran.returncode == 1, ran.stderr
    total = ran.stdout.splitlines()[1].split()
    assert total == ["toy.py", "6", "2", "0", "1", "1", "2"], ran.stdout
    for name in SURVIVORS:
        assert name in ran.stdout
    assert "is_adult:invert" not in ran.stdout
    assert (toy.folder / "toy.py").read_text() == TOY
    new = {path.name for path in toy.folder.iterdir()} - before
    assert new <= {"cache", "survivors.toml", "__pycache__"}


def test_survivors_that_are_explained_are_no_failure(toy: Toy) -> None:
    ran = toy.run(SURVIVORS)
    assert ran.returncode == 0, ran.stdout


def test_an_explanation_that_does_not_hold_is_a_failure(toy: Toy) -> None:
    wrong = {
        "toy.py:is_adult:invert:1": "age >= 18",  # killed
        "toy.py:is_adult:shift:1": "age >= 21",
        "toy.py:is_adult:shift:2": "age >= 18",
        "elsewhere.py:f:shift:1": "a < b",  # not in the files of this run
    }
    ran = toy.run(SURVIVORS | wrong)
    assert ran.returncode == 1
    told = ran.stdout.splitlines()[4:]
    assert len(told) == 3, ran.stdout
    assert (
        "shift:1 is explained as a change of `age >= 21`, and is now one of `age >= 18`" in told[0]
    )
    assert "shift:2 is explained, and there is no such mutant" in told[1]
    assert "invert:1 is explained, and killed by" in told[2]


def test_verdicts_are_kept_until_the_tests_change(toy: Toy) -> None:
    def survives() -> bool:
        return "toy.py:is_adult:shift:1" in toy.run({}, "--only", "is_adult").stdout

    assert survives()
    (toy.folder / "cases.py").write_text(f"{CASES}\n    assert toy.is_adult(18)\n")
    assert not survives()


def test_tests_that_fail_without_a_mutant_judge_nothing(toy: Toy) -> None:
    (toy.folder / "cases.py").write_text("def test_it() -> None:\n    assert 1 == 2\n")
    ran = toy.run({})
    assert ran.returncode == 2
    assert "fail without a mutant" in ran.stdout
    assert "assert 1 == 2" in ran.stdout


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        ("return a < b", {"invert": ["a >= b"], "shift": ["a <= b"]}),
        ("return 0 <= a < b", {"invert": ["0 > a < b", "0 <= a >= b"]}),
        ("return a is b", {"invert": ["a is not b"]}),
        ("return a not in b", {"invert": ["a in b"]}),
        ("return a and b and c", {"drop": ["b and c", "a and c", "a and b"]}),
        ("if a:\n  return 1\nreturn 2", {"negate": ["not a"], "never": ["False"]}),
        ("if not a:\n  return 1\nreturn 2", {"negate": ["a"], "never": ["False"]}),
        ("if a == b:\n  return 1\nreturn 2", {"invert": ["a != b"], "never": ["False"]}),
        ("while a:\n  a = b()", {"negate": ["not a"]}),
        ("while True:\n  a()", {}),
        ("return 1 if a else 2", {"negate": ["not a"]}),
        ("return [x for x in a if x]", {"negate": ["not x"], "filter": ["True"]}),
        ("match a:\n  case 1 if b: c()", {"negate": ["not b"], "never": ["False"]}),
        ("t([Compare(a), self.fence, *compares, b])", {"fence": 3 * ["..."]}),
        ("unmoved = Compare(a)\nt([unmoved])", {"fence": ["[]"]}),
        ("a += [Compare(a)]", {"fence": ["[]"]}),
        ("a.append(Compare(a))", {"fence": ["pass"]}),
        ("t([Compare(x) for x in a])", {"fence": ["[]"]}),
        ("self.must(a)", {"check": ["pass"]}),
        ("await self.must(a)", {"check": ["pass"]}),
        ("self.other(a)", {}),
        ("super().__init__(a)", {}),
        ("return (lambda: a < b)()", {"shift": ["a <= b"]}),
    ],
)
def test_what_is_changed(tmp_path: Path, body: str, changes: dict[str, list[str]]) -> None:
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    path = tmp_path / "code.py"
    path.write_text(
        "class A:\n"
        "    def __init__(self) -> None:\n        raise ValueError\n"
        "    def fence(self) -> Compare: ...\n"
        "    def must(self) -> None:\n        raise ValueError\n"
        f"    async def f(self, a, b, c, compares):\n{lines}"
    )
    found: dict[str, list[str]] = {}
    for mutant in find(path, "code.py", Facts.of([path])):
        name, scope, kind, ordinal = mutant.name.split(":")
        assert (name, scope) == ("code.py", "A.f")
        found.setdefault(kind, []).append(mutant.after)
        assert ordinal == str(len(found[kind]))
    for kind, texts in changes.items():
        assert len(found[kind]) == len(texts)
        if "..." not in texts:
            assert found[kind] == texts
    if not changes:
        assert not found


def test_explanations_are_of_mutants_that_exist() -> None:
    mutants = collect()
    assert list(outdated(read(), {mutant.name: mutant.before for mutant in mutants})) == []


def test_explanations_say_something() -> None:
    assert all(len(one.reason) > 20 for one in read().values())


def test_nothing_but_functions_has_a_mutant() -> None:
    """So it is enough to replace the code of functions."""
    mutants = collect()
    for path in {mutant.path for mutant in mutants}:
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                assert not any(isinstance(n, ast.Compare | ast.BoolOp) for n in ast.walk(node))
