"""What is installed is pinned by version and hash, for all that the project says it needs."""

import importlib.util
import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

TOP = Path(__file__).parents[2]
FOLDER = TOP / "requirements"
FILES = sorted(path for path in FOLDER.iterdir() if path.is_file())
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
LOCKS = {
    "build": [],
    "image": PROJECT["project"]["dependencies"],
    "run": [*PROJECT["project"]["dependencies"], *EXTRAS["embedded"]],
    "test": [*PROJECT["project"]["dependencies"], *EXTRAS["embedded"], *EXTRAS["test"]],
    "dev": [*PROJECT["project"]["dependencies"], *chain.from_iterable(EXTRAS.values())],
}
INPUTS = {"build": ["build"], "image": ["image"], "dev": ["build", "image"]}
_ENTRY = re.compile(
    r"^(\S+)==([^\s;]+)[^\n]*\n((?:    --hash=sha256:[0-9a-f]{64}[ \\]*\n)*)", re.MULTILINE
)


def locked(name: str) -> dict[str, list[Version]]:
    """Return the versions of a file, each of which has its hashes."""
    found: dict[str, list[Version]] = {}
    for package, version, hashes in _ENTRY.findall((FOLDER / f"{name}.txt").read_text("utf-8")):
        assert hashes, f"{package}=={version} of {name}.txt has no hash: run `make lock`"
        found.setdefault(canonicalize_name(package), []).append(Version(version))
    return found


def test_every_file_is_judged_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(LOCKS)


@pytest.mark.parametrize("name", LOCKS)
def test_all_that_is_needed_is_pinned(name: str) -> None:
    inputs = INPUTS.get(name, [])
    lines = [
        line
        for each in inputs
        for line in (FOLDER / f"{each}.in").read_text("utf-8").splitlines()
        if not line.startswith("#")
    ]
    pinned = locked(name)
    for line in (*LOCKS[name], *lines):
        requirement = Requirement(line)
        if requirement.name == PROJECT["project"]["name"]:  # its own extras
            continue
        versions = pinned.get(canonicalize_name(requirement.name), [])
        assert versions, f"{name}.txt lacks {requirement}: run `make lock`"
        fits = [version in requirement.specifier for version in versions]
        # Where a marker chooses between lines, each line has its version.
        assert any(fits) if requirement.marker else all(fits), requirement


def test_what_builds_it_is_pinned() -> None:
    pinned = locked("build")
    for line in PROJECT["build-system"]["requires"]:
        requirement = Requirement(line)
        assert pinned[requirement.name][0] in requirement.specifier


@pytest.mark.parametrize("name", LOCKS)
def test_the_files_agree_on_versions(name: str) -> None:
    everything = locked("dev")
    for package, versions in locked(name).items():
        assert set(versions) <= set(everything[package]), package


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_index_is_named(path: Path) -> None:
    assert "://" not in path.read_text("utf-8")


@pytest.mark.parametrize("name", ["README.md", "docs/guide.rst"])
def test_readers_install_what_was_hashed(name: str) -> None:
    """That holds for what builds Kontrol too, which pip would fetch by itself, as it likes."""
    lines = re.findall(r"\S*bin/pip install (.*)", (TOP / name).read_text("utf-8"))
    assert lines
    for line in lines:
        if line != "--no-deps --no-build-isolation .":
            assert line.startswith("--only-binary :all: --require-hashes -r requirements/"), line


def audit() -> object:
    spec = importlib.util.spec_from_file_location("audit", FOLDER / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


AUDIT = audit()
GOOD = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("found", "failure", "status", "said"),
    [
        ([GOOD], "", 0, ["checked 1 of 1 pinned packages: 0 vulnerable"]),
        ([GOOD, BAD], "", 1, ["b 2: PYSEC-1; fixed in 3", "checked 2 of 2", "1 vulnerable"]),
        ([GOOD, UNKNOWN], "", 0, ["checked 1 of 2", "the rest could not be checked"]),
        ([], "no route", 0, ["checked 0 of 0", "pip-audit failed: no route"]),
    ],
)
def test_the_audit_says_what_it_could_check(
    found: list[dict[str, object]], failure: str, status: int, said: list[str]
) -> None:
    got, text = AUDIT.judge(len(found), found, failure)  # type: ignore[attr-defined]
    assert got == status
    assert all(each in text for each in said), text


def test_the_audit_asks_for_every_pin(tmp_path: Path) -> None:
    text = "a==1 ; x < 2 \\\n    --hash=sha256:0\na==2\nb==1\n    # via a==3\n"
    (tmp_path / "a.txt").write_text(text)
    pins = AUDIT.pins(tmp_path)  # type: ignore[attr-defined]
    assert pins == {"a==1", "a==2", "b==1"}
    assert AUDIT.lists(pins) == ["a==1\nb==1\n", "a==2\n"]  # type: ignore[attr-defined]
