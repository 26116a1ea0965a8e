"""The import contracts of pyproject.toml are kept, and each of them can fail.

The breaks are made from the contracts themselves, so that a new layer, module or contract is tried
without a word here.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).parents[2]
OPTIONS = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS: list[dict[str, Any]] = OPTIONS["tool"]["importlinter"]["contracts"]
NAMES = [each["name"] for each in CONTRACTS]
PURE = next(each for each in CONTRACTS if each["type"] == "pure")
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what the contracts are about."""
    shutil.copytree(TOP / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TOP / "pyproject.toml", tmp_path)
    (tmp_path / "tests" / "support").mkdir(parents=True)
    shutil.copy(TOP / "tests" / "support" / "purity.py", tmp_path / "tests" / "support")
    return tmp_path


def test_every_contract_is_kept(copy: Path) -> None:
    status, output = lint(copy)
    assert status == 0, output
    assert all(f"{name} KEPT" in output for name in NAMES), output


@pytest.mark.parametrize("contract", CONTRACTS, ids=NAMES)
def test_a_contract_that_is_broken_fails_by_name(contract: dict[str, Any], copy: Path) -> None:
    breaks = list(broken(contract))
    for importer, imported in breaks:
        append(copy, importer, f"import {imported}")
    status, output = lint(copy)
    assert status == 1
    assert f"{contract['name']} BROKEN" in output
    unnoticed = [each for each in breaks if not reported(*each, output)]
    assert not unnoticed, output


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("import secrets", "imports secrets"),
        ("from random import random\nrandom()", "imports random.random"),
        ("def now():\n    from time import monotonic\n    return monotonic()", "imports time.mono"),
        ("import kontrol.logs", "-> kontrol.logs:"),
        ("from urllib import request\nrequest.urlopen", "imports urllib.request"),
        ("from pathlib import Path\nPath('x').read_text()", "calls read_text"),
        ("print('x')", "calls print"),
        ("def at():\n    from datetime import datetime\n    return datetime.now()", "calls now"),
    ],
)
def test_what_is_not_pure_is_named_with_its_line(line: str, why: str, copy: Path) -> None:
    policy = PURE["modules"][0]
    append(copy, policy, line)
    status, output = lint(copy)
    assert status == 1
    assert f"{PURE['name']} BROKEN" in output
    assert policy in output
    assert why in output


def test_a_name_for_annotations_alone_keeps_a_module_pure(copy: Path) -> None:
    line = "from kontrol.logs import Event\ndef of(event: Event) -> Event | None:\n    return event"
    append(copy, PURE["modules"][0], line)
    status, output = lint(copy)
    assert f"{PURE['name']} KEPT" in output, (status, output)


def test_a_claim_that_is_not_in_the_list_fails(copy: Path) -> None:
    (copy / "src" / "kontrol" / "added.py").write_text('"""A sum. Pure."""\n', encoding="utf-8")
    append(copy, "kontrol.errors", "", docstring='"""Errors, with no I/O."""')
    status, output = lint(copy)
    assert status == 1
    assert "kontrol.added: its docstring says that it is pure; add it to the list" in output
    assert "kontrol.errors: its docstring says that it is pure; add it to the list" in output


def test_a_module_of_the_list_has_to_say_so(copy: Path) -> None:
    dropped = PURE["modules"][0]
    append(copy, dropped, "", docstring='"""A module."""')
    options = (copy / "pyproject.toml").read_text(encoding="utf-8")
    renamed = options.replace(f'"{PURE["modules"][1]}"', '"kontrol.gone"')
    (copy / "pyproject.toml").write_text(renamed, encoding="utf-8")
    status, output = lint(copy)
    assert status == 1
    assert f"{dropped}: listed as pure, but its docstring does not say so" in output
    assert "kontrol.gone: listed as pure, but there is no such module" in output


def broken(contract: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield imports that the contract is there to refuse: who imports, and what."""
    match contract["type"]:
        case "layers":
            container = f"{contract['containers'][0]}." if "containers" in contract else ""
            layers = [layer.replace(":", "|").split("|") for layer in contract["layers"]]
            floors = [[container + name.strip() for name in layer] for layer in layers]
            for upper, lower in pairwise(floors):
                yield from ((importer, imported) for importer in lower for imported in upper)
            for layer, floor in zip(contract["layers"], floors, strict=True):
                if "|" in layer:
                    yield from combinations(floor, 2)
        case "forbidden":
            for importer in contract["source_modules"]:
                yield from ((importer, imported) for imported in contract["forbidden_modules"])
        case "protected":
            yield from (("kontrol.errors", name) for name in contract["protected_modules"])
        case "pure":
            yield from ((name, "time") for name in contract["modules"])
        case other:
            pytest.fail(f"no break is known for contracts of type {other}")


def reported(importer: str, imported: str, output: str) -> bool:
    """Whether a report has this import, in the words of any type of contract."""
    plain = " ".join(output.split())
    return any(
        words in plain
        for words in (
            f"{importer} is not allowed to import {imported}:",
            f"- {importer} -> {imported} (",
        )
    ) or any(
        line.startswith(f"{importer}:") and line.endswith(f"imports {imported}")
        for line in output.splitlines()
    )


def append(copy: Path, module: str, line: str, docstring: str = "") -> None:
    """Add a line to a module, or give it another docstring."""
    path = copy.joinpath("src", *module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = path.read_text(encoding="utf-8")
    if docstring:
        _, _, rest = text.removeprefix('"""').partition('"""')
        text = docstring + rest
    path.write_text(f"{text}\n\n{line}\n", encoding="utf-8")


def lint(copy: Path) -> tuple[int, str]:
    """Return the exit status and the output of `lint-imports`."""
    environ = os.environ | {"PYTHONPATH": f"{copy / 'src'}:{copy}", "COLUMNS": "500"}
    done = subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache"],
        cwd=copy,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr
