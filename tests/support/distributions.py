"""Tries the distributions in a folder as a new user would: `python -m tests.support.distributions`.

Both must have every module, and the sdist what people need beside them. The sdist is unpacked in a
fresh folder, where its tests run and its documentation is built: by `make`, and again by
`make html` where only the extra `docs` is installed. The wheel is installed in a fresh environment,
where the demo runs. `--tests` chooses the tests. With `--tag`, both must be of the version that a
tag of this commit names. Exit status 1 if anything fails.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

TOP = Path(__file__).parents[2]
BESIDE = ("Makefile", "LICENSE", "README.md", "docs/Makefile", "tests/conftest.py", "image/venv")


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.distributions")
    parser.add_argument("folder", type=Path, nargs="?", default=TOP / "dist")
    parser.add_argument("--tests", nargs="*", default=[], help="default: all")
    parser.add_argument("--tag", action="store_true", help="expect a tag of the version")
    arguments = parser.parse_args()
    try:
        sdist, wheel, version = find(arguments.folder)
        if arguments.tag:
            check_tag(version)
        check_contents(sdist, wheel)
        with tempfile.TemporaryDirectory() as temporary:
            try_sdist(sdist, version, Path(temporary), arguments.tests)
            try_wheel(wheel, version, Path(temporary))
    except Fault as fault:
        sys.stderr.write(f"{fault}\n")
        return 1
    return 0


class Fault(Exception):
    """What is wrong with the distributions."""


def find(folder: Path) -> tuple[Path, Path, str]:
    """Return the sdist, the wheel, and the version that both have. Raises `Fault`."""
    found = sorted(path for path in folder.iterdir() if path.name != ".gitignore")
    match [path.name for path in found]:
        case [wheel, sdist] if wheel.endswith("-py3-none-any.whl") and sdist.endswith(".tar.gz"):
            stem = sdist.removesuffix(".tar.gz")
            if wheel == f"{stem}-py3-none-any.whl":
                return folder / sdist, folder / wheel, stem.removeprefix("kontrol_loop-")
    names = ", ".join(path.name for path in found) or "nothing"
    raise Fault(f"{folder} has {names}; expected an sdist and a wheel of one version: `make dist`")


def check_tag(version: str) -> None:
    """Raise `Fault` if this commit may not be published as that version."""
    git = ["git", "-C", os.fspath(TOP)]
    tags = subprocess.run(
        [*git, "tag", "--points-at", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.split()
    if f"v{version}" not in tags:
        has = ", ".join(tags) or "none"
        raise Fault(
            f"no tag v{version} is at this commit (its tags: {has}): tag it and `make dist`"
        )
    if "OWNER" in (TOP / "pyproject.toml").read_text(encoding="utf-8"):
        raise Fault("pyproject.toml has the placeholder OWNER: see RELEASING.md")
    chart = (TOP / "deploy" / "Chart.yaml").read_text(encoding="utf-8")
    if f'\nversion: {version}\nappVersion: "{version}"\n' not in chart:
        raise Fault(f"deploy/Chart.yaml has another version than {version}: see RELEASING.md")


def check_contents(sdist: Path, wheel: Path) -> None:
    """Raise `Fault` if a distribution lacks a file of the packages, or what belongs beside them."""
    source = TOP / "src"
    files = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        _complete(wheel, set(archive.namelist()), files)
    stem = sdist.name.removesuffix(".tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix(f"{stem}/") for name in archive.getnames()}
    _complete(sdist, names, {*BESIDE, *(f"src/{name}" for name in files)})


def try_sdist(sdist: Path, version: str, temporary: Path, tests: Sequence[str]) -> None:
    """Run the tests of an sdist and build its documentation. Raises `Fault`."""
    with tarfile.open(sdist) as archive:
        archive.extractall(temporary, filter="data")
    unpacked = temporary / sdist.name.removesuffix(".tar.gz")
    run("make", "test", f"TESTS={' '.join(tests)}", cwd=unpacked)
    run("make", "docs", cwd=unpacked)
    check_version(unpacked / ".venv" / "bin", version, unpacked)
    shutil.rmtree(unpacked / ".venv")  # whose Sphinx `make html` would take
    shutil.rmtree(unpacked / "docs" / "_build")
    programs = environment(temporary / "docs")
    run(programs / "pip", "install", "--quiet", ".[docs]", cwd=unpacked)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    run("make", "html", cwd=unpacked / "docs", path=path)


def try_wheel(wheel: Path, version: str, temporary: Path) -> None:
    """Run the demo where only a wheel, and what it needs, is installed. Raises `Fault`."""
    programs = environment(temporary / "wheel")
    locked = ("--require-hashes", "--requirement", TOP / "requirements" / "run.txt")
    run(programs / "pip", "install", "--quiet", *locked, cwd=temporary)
    run(programs / "pip", "install", "--quiet", "--no-deps", wheel.absolute(), cwd=temporary)
    check_version(programs, version, temporary)
    run(programs / "automaton", "--version", cwd=temporary)
    run(programs / "kontrol", "demo", "--pace", "0", cwd=temporary)


def check_version(programs: Path, version: str, cwd: Path) -> None:
    """Raise `Fault` if the commands there do not say that they are of this version."""
    said = subprocess.run(
        [programs / "kontrol", "--version"], cwd=cwd, capture_output=True, text=True, check=False
    ).stdout.strip()
    if said != f"kontrol {version}":
        raise Fault(f"{programs}/kontrol --version says {said!r}; expected version {version}")


def environment(folder: Path) -> Path:
    """Make a virtual environment with pip; return the folder of its programs."""
    venv.create(folder, with_pip=True)
    return folder / "bin"


def run(*argv: str | Path, cwd: Path, path: str | None = None) -> None:
    """Run a command that has to succeed; its output goes where ours goes. Raises `Fault`."""
    environ = os.environ | ({"PATH": path} if path else {})
    if subprocess.run(argv, cwd=cwd, env=environ, check=False).returncode:
        raise Fault(f"failed in {cwd}: {' '.join(map(str, argv))}")


def _complete(distribution: Path, names: set[str], wanted: set[str]) -> None:
    if missing := sorted(wanted - names):
        raise Fault(f"{distribution.name} lacks {', '.join(missing)}")


if __name__ == "__main__":
    sys.exit(main())
