"""`kontrol`, and `python -m kontrol`: checks the Python environment, then runs a command.

Other projects' distributions `kontrol` and `automaton` install import packages of the same names,
over ours or before ours, so this comes before anything else is imported.
"""

import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence

_OTHERS = re.compile(r"(kontrol|automaton)-[0-9][^/]*\.(dist|egg)-info\Z")
_USAGE = 2
_REMEDY = (
    "install the distribution kontrol-loop in an environment of its own: `python3 -m venv FOLDER`"
)


def main() -> int:
    """Run the command that the arguments say; returns the exit status."""
    _open_streams()
    other = other_automaton()
    if other is not None:
        _say(f"the package automaton in {other} belongs to another project; {_REMEDY}")
        return _USAGE
    for found in others_installed(sys.path):
        _say(f"warning: {found} is of another project, and may have replaced files; {_REMEDY}")

    from kontrol.cli import main as run

    return run()


def other_automaton() -> str | None:
    """Return the folder of the package `automaton` if it does not lie beside this package."""
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    spec = importlib.util.find_spec("automaton")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    beside = os.path.join(ours, "automaton")  # noqa: PTH118 - pathlib costs 10 ms to import
    if any(os.path.realpath(folder) == os.path.realpath(beside) for folder in folders):
        return None
    return folders[0] if folders else "(nowhere)"


def others_installed(path: Sequence[str]) -> Iterator[str]:
    """Yield the metadata folders of other projects' distributions in the folders of `path`."""
    for folder in path:
        try:
            with os.scandir(folder or ".") as entries:
                yield from (entry.path for entry in entries if _OTHERS.match(entry.name))
        except OSError:
            continue  # not there, or an archive


def _open_streams() -> None:
    """Have standard streams that the caller closed, as `<&-` does, be empty and lead nowhere.

    Python has None for them, and the next file or socket would get the number of one.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _say(text: str) -> None:
    sys.stderr.write(f"kontrol: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
