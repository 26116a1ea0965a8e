"""Tries the distributions in a folder as a stranger would: `python -m tests.support.distributions`.

The sdist is unpacked in a fresh folder, where its tests and its documentation are run; the wheel is
installed in a fresh environment, where the demo is. `--tests` chooses the tests. With `--tag`, both
must be of the version that a tag of this commit names. Exit status 1 if anything fails.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

from kontrol import __version__

TOP = Path(__file__).parents[2]


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.distributions")
    parser.add_argument("folder", type=Path, nargs="?", default=TOP / "dist")
    parser.add_argument("--tests", nargs="*", default=[], help="default: all")
    parser.add_argument("--tag", action="store_true", help="expect a tag of the version")
    arguments = parser.parse_args()
    stem = f"kontrol_loop-{__version__}"
    sdist = arguments.folder / f"{stem}.tar.gz"
    wheel = arguments.folder / f"{stem}-py3-none-any.whl"
    expected = {sdist, wheel}
    if (found := set(arguments.folder.iterdir()) - {arguments.folder / ".gitignore"}) != expected:
        return _fail(f"{arguments.folder} has {_names(found)}; expected {_names(expected)}")
    if arguments.tag and (why := _untagged()):
        return _fail(why)
    with tempfile.TemporaryDirectory() as temporary:
        with tarfile.open(sdist) as archive:
            archive.extractall(temporary, filter="data")
        unpacked = Path(temporary, stem)
        words = " ".join(arguments.tests)
        for target in (("test", f"TESTS={words}"), ("docs",)):
            if subprocess.run(["make", *target], cwd=unpacked, check=False).returncode:
                return _fail(f"`make {' '.join(target)}` failed in the unpacked sdist")
        environment = Path(temporary, "environment")
        venv.create(environment, with_pip=True)
        pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        locked = ["--require-hashes", "--requirement", str(TOP / "requirements" / "run.txt")]
        for what in (locked, ["--no-deps", str(wheel)]):
            subprocess.run([*pip, *what], check=True)
        demo = [str(environment / "bin" / "kontrol"), "demo", "--pace", "0"]
        if subprocess.run(demo, cwd=temporary, check=False).returncode:
            return _fail("`kontrol demo` failed where only the wheel is installed")
    return 0


def _untagged() -> str:
    """Say why this commit may not be published; empty if it may."""
    git = ["git", "-C", os.fspath(TOP)]
    tags = subprocess.run(
        [*git, "tag", "--points-at", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.split()
    if f"v{__version__}" not in tags:
        return f"no tag v{__version__} is at this commit (its tags: {', '.join(tags) or 'none'})"
    if "OWNER" in (TOP / "pyproject.toml").read_text(encoding="utf-8"):
        return "pyproject.toml has the placeholder OWNER: see RELEASING.md"
    return ""


def _names(paths: set[Path]) -> str:
    return ", ".join(sorted(path.name for path in paths)) or "nothing"


def _fail(why: str) -> int:
    sys.stderr.write(f"{why}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
