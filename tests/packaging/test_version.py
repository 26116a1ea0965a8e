"""The version is that of the tag, in a checkout, an sdist and a wheel, and without git too."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import kontrol

TOP = Path(__file__).parents[2]
FALLBACK = tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["version"][
    "fallback-version"
]
NEEDED = ("pyproject.toml", "README.md", "LICENSE", ".gitignore")


def test_what_is_installed_says_its_version() -> None:
    printed = run(sys.executable, "-m", "kontrol", "--version", cwd=TOP)
    assert printed == f"kontrol {kontrol.__version__}\n"
    assert kontrol.__version__ == metadata.version("kontrol-loop")


def test_the_fallback_is_of_the_release_that_is_being_made() -> None:
    """Without tags, a tree is of the version that the changelog begins with."""
    heading = re.search(r"^## (\S+)", (TOP / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert heading is not None
    assert f"{heading[1]}.dev0" == FALLBACK


def test_without_git_it_is_the_fallback(tree: Path) -> None:
    assert version(tree) == FALLBACK
    assert version(tree, PATH="/nowhere") == FALLBACK


def test_an_image_is_built_with_the_version_that_it_is_given(tree: Path) -> None:
    assert version(tree, SETUPTOOLS_SCM_PRETEND_VERSION="98.7.6") == "98.7.6"


@pytest.mark.equipped("git")
def test_in_a_checkout_it_is_that_of_the_tag(tree: Path) -> None:
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message", "First")
    untagged = version(tree)
    assert untagged.startswith(f"{FALLBACK.removesuffix('0')}1+g"), untagged
    git(tree, "tag", "v98.7.0rc1")
    assert version(tree) == "98.7.0rc1"
    git(tree, "tag", "v98.7.0")
    assert version(tree) == "98.7.0"
    git(tree, "commit", "--quiet", "--allow-empty", "--message", "Second")
    assert version(tree).startswith("98.7.1.dev1+g")


@pytest.mark.equipped("git")
def test_sdist_and_wheel_keep_it_where_there_is_no_git(tree: Path, tmp_path: Path) -> None:
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message", "First")
    git(tree, "tag", "v98.7.0")
    build(tree, "sdist", tmp_path / "dist")
    with tarfile.open(tmp_path / "dist" / "kontrol_loop-98.7.0.tar.gz") as archive:
        archive.extractall(tmp_path)  # noqa: S202 - built here; Python 3.11.2 knows no filters
    unpacked = tmp_path / "kontrol_loop-98.7.0"
    build(unpacked, "wheel", tmp_path / "dist")
    wheel = tmp_path / "dist" / "kontrol_loop-98.7.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")  # noqa: S202 - built here
    assert (
        run(
            *(sys.executable, "-P", "-c", "import kontrol; print(kontrol.__version__)"),
            cwd=tmp_path / "installed",
            PYTHONPATH=str(tmp_path / "installed"),
        )
        == "98.7.0\n"
    )


@pytest.mark.equipped("git")
def test_an_archive_of_a_tag_knows_it(tree: Path, tmp_path: Path) -> None:
    """As a code host makes it: no git there, but the names of the tag in `.git_archival.txt`."""
    for name in (".gitattributes", ".git_archival.txt"):
        shutil.copy(TOP / name, tree)
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message", "First")
    git(tree, "tag", "v98.7.0")
    git(tree, "archive", f"--output={tmp_path / 'archive.tar'}", "--prefix=archive/", "v98.7.0")
    with tarfile.open(tmp_path / "archive.tar") as archive:
        archive.extractall(tmp_path)  # noqa: S202 - built here; Python 3.11.2 knows no filters
    assert version(tmp_path / "archive") == "98.7.0"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The least of a checkout that can be built, without git."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in NEEDED:
        shutil.copy(TOP / name, tree)
    for package in ("kontrol", "automaton", "kontrol_common"):
        folder = tree / "src" / package
        folder.mkdir(parents=True)
        shutil.copy(TOP / "src" / package / "__init__.py", folder)
    return tree


def version(tree: Path, **environ: str) -> str:
    """Return the version that a build of the tree would have."""
    return run(sys.executable, "-m", "hatchling", "version", cwd=tree, **environ).strip()


def build(tree: Path, target: str, where: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(where), cwd=tree)


def git(tree: Path, *words: str) -> None:
    options = ("-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "commit.gpgSign=false")
    run("git", *options, *words, cwd=tree)


def run(*argv: str, cwd: Path, **environ: str) -> str:
    """Return the output of a command that has to succeed."""
    done = subprocess.run(
        argv,
        cwd=cwd,
        env=os.environ | {"GIT_CONFIG_GLOBAL": os.devnull} | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
