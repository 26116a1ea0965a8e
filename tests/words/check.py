"""Check that text and names use none of the words of banned.toml.

`python -m tests.words.check` prints each as `path:line: word: what to write`, and ends with
status 1 if there are any. Source is text here: names and comments are read as messages are.
"""

import os
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
LIST: Final = Path(__file__).with_name("banned.toml")
CHECKED: Final = (
    *("src", "tests", "docs", "deploy", "image", "bench", "examples", "requirements", ".github"),
    *("debian-12", "debian-13", "alpine-3.24", "Makefile", "pyproject.toml"),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "RELEASING.md"),
)
NOT_OURS: Final = ("tests/words/", "tests/support/certs/")
# Between two words of a phrase: also the end of a line of a comment, a table or a string.
GAP: Final = r"""(?:[\s#*|"'`]+(?:f["'])?)"""


@dataclass(frozen=True)
class Banned:
    """The list, compiled: one alternative for each row."""

    pattern: re.Pattern[str]
    instead: Sequence[str]
    exempt: Sequence[str]
    quoted: dict[str, dict[str, str]]  # path: {word: reason}

    @classmethod
    def load(cls, text: str) -> "Banned":
        """Read the text of banned.toml.

        Raises `tomllib.TOMLDecodeError`, `re.error` or `KeyError` for one that is not of its form.
        """
        table = tomllib.loads(text)
        rows = table["instead"]
        groups = "|".join(f"({row.replace(' ', GAP)})" for row in rows)
        return cls(
            re.compile(rf"(?<![a-z])(?:{groups})(?![a-z])"),
            tuple(rows.values()),
            tuple(table["exempt"]["paths"]),
            table.get("quoted", {}),
        )

    def in_text(self, text: str) -> Iterator[tuple[int, str, str]]:
        """Yield the line, the word and what to write instead, of each in the text."""
        # In camelCase, a capital letter begins a word. Lower case is much faster than IGNORECASE.
        text = re.sub("(?<=[a-z])(?=[A-Z])", "\0", text).lower()
        for match in self.pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            # The only groups are those of the rows, so the last one is the row's.
            yield line, " ".join(match[0].split()), self.instead[(match.lastindex or 1) - 1]

    def in_tree(self, root: Path) -> Iterator[str]:
        """Yield a line for each word in the files of `root` that are checked."""
        for path in files(root):
            if any(path == one or path.startswith(f"{one}/") for one in self.exempt):
                continue
            try:
                text = (root / path).read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            quoted = self.quoted.get(path, {})
            for line, word, instead in [*self.in_text(path), *self.in_text(text)]:
                if word not in quoted:
                    yield f"{path}:{line}: {word}: write {instead}"


def files(root: Path) -> Iterator[str]:
    """Yield the paths of all files to check, relative to `root`, with `/`."""
    for name in CHECKED:
        if (root / name).is_file():
            yield name
        for folder, folders, names in os.walk(root / name):
            folders[:] = sorted(
                one for one in folders if not one.startswith((".", "_build", "__pycache__"))
            )
            for one in sorted(names):
                path = (Path(folder) / one).relative_to(root).as_posix()
                if not path.startswith(NOT_OURS):
                    yield path


def main() -> int:
    """Print what is found. Return the exit status."""
    found = list(Banned.load(LIST.read_text(encoding="utf-8")).in_tree(ROOT))
    for line in found:
        print(line)
    if found:
        print(f"{len(found)} banned words; tests/words/banned.toml has the list.", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
