"""sdist and wheel have everything; `make dist` tries them, and says what is wrong with them."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support import distributions
from tests.support.distributions import TOP, Fault

LEFT = (".git", ".venv", "__pycache__", "_build", "dist", ".*_cache", ".hypothesis", "node_modules")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distributions of this checkout, built elsewhere: a build writes into the sources."""
    copy = tmp_path_factory.mktemp("built") / "copy"
    shutil.copytree(TOP, copy, ignore=shutil.ignore_patterns(*LEFT))
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel"],
        cwd=copy,
        check=True,
        capture_output=True,
        timeout=120,
    )
    return copy / "dist"


def test_both_have_every_file_of_all_packages(built: Path) -> None:
    sdist, wheel, version = distributions.find(built)
    assert re.fullmatch(r"\d[\w.+]*", version)
    distributions.check_contents(sdist, wheel)


def test_the_wheel_has_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(distributions.find(built)[1]) as archive:
        roots = {name.partition("/")[0] for name in archive.namelist()}
    assert {root for root in roots if not root.endswith(".dist-info")} == {
        "automaton",
        "kontrol",
        "kontrol_common",
    }


@pytest.mark.parametrize(
    "lost", ["kontrol_common/processes.py", "kontrol/py.typed", "automaton/api.py"]
)
def test_a_wheel_that_lacks_a_file_is_refused(lost: str, built: Path, tmp_path: Path) -> None:
    sdist, wheel, _ = distributions.find(built)
    poorer = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as archive, zipfile.ZipFile(poorer, "w") as target:
        for name in archive.namelist():
            if name != lost:
                target.writestr(name, archive.read(name))
    with pytest.raises(Fault, match=f"whl lacks {lost}"):
        distributions.check_contents(sdist, poorer)


@pytest.mark.parametrize("lost", ["src/kontrol_common/processes.py", "docs/Makefile", "LICENSE"])
def test_an_sdist_that_lacks_a_file_is_refused(lost: str, built: Path, tmp_path: Path) -> None:
    sdist, wheel, _ = distributions.find(built)
    poorer = tmp_path / sdist.name
    with tarfile.open(sdist) as archive, tarfile.open(poorer, "w:gz") as target:
        for member in archive:
            if not member.name.endswith(f"/{lost}"):
                target.addfile(member, archive.extractfile(member))
    with pytest.raises(Fault, match=f"gz lacks {lost}"):
        distributions.check_contents(poorer, wheel)


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["kontrol_loop-1.0.0.tar.gz"],
        ["kontrol_loop-1.0.0.tar.gz", "kontrol_loop-1.0.1-py3-none-any.whl"],
        ["kontrol_loop-1.0.0.tar.gz", "kontrol_loop-1.0.0-py3-none-any.whl", "notes.txt"],
    ],
)
def test_a_folder_that_holds_something_else_is_refused(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(Fault, match="expected an sdist and a wheel of one version"):
        distributions.find(tmp_path)


def release(folder: Path, version: str) -> None:
    """What a commit that may be published has."""
    (folder / "deploy").mkdir()
    (folder / "pyproject.toml").write_text("[project]\n")
    chart = f'name: kontrol\nversion: {version}\nappVersion: "{version}"\n'
    (folder / "deploy" / "Chart.yaml").write_text(chart)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "Release")


def git(folder: Path, *words: str) -> None:
    options = ("-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "commit.gpgSign=false")
    subprocess.run(["git", *options, *words], cwd=folder, check=True, timeout=30)


def _untag(folder: Path) -> None:
    git(folder, "tag", "--delete", "v1.2.3")


def _owner(folder: Path) -> None:
    (folder / "pyproject.toml").write_text('Repository = "https://github.com/OWNER/kontrol"\n')


def _chart(folder: Path) -> None:
    (folder / "deploy" / "Chart.yaml").write_text('\nversion: 1.2.2\nappVersion: "1.2.2"\n')


@pytest.mark.equipped("git")
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_untag, r"no tag v1\.2\.3 is at this commit \(its tags: v0\)"),
        (_owner, "placeholder OWNER"),
        (_chart, r"Chart.yaml has another version than 1\.2\.3"),
    ],
)
def test_what_may_not_be_published(
    spoil: Callable[[Path], None], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributions, "TOP", tmp_path)
    release(tmp_path, "1.2.3")
    git(tmp_path, "tag", "v0")
    git(tmp_path, "tag", "v1.2.3")
    distributions.check_tag("1.2.3")
    spoil(tmp_path)
    with pytest.raises(Fault, match=why):
        distributions.check_tag("1.2.3")
