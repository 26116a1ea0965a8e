"""The command blocks of the documentation, as a user who copies them would run them."""

import re
import textwrap
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"

_BLOCK = re.compile(
    r"^( *)\.\. code-block:: (\w+)\n((?:\1   +:.*\n)*)\n((?:\1   .*\n|\n)+)", re.MULTILINE
)


def section(page: str, title: str = "") -> str:
    """Return the text of a page, or of one section: to the next title of the same kind."""
    text = (DOCS / page).read_text("utf-8")
    if not title:
        return text
    match = re.search(rf"^{re.escape(title)}\n([-~.=]){{{len(title)}}}\n", text, re.MULTILINE)
    assert match, f"{page} has no section {title!r}"
    rest = text[match.end() :]
    end = re.search(rf"^.+\n{re.escape(match[1])}{{3,}}\n", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def blocks(text: str) -> list[tuple[str, str, str]]:
    """Return the code blocks in order: language, caption (empty without one), content."""
    found = []
    for _, language, options, content in _BLOCK.findall(text):
        caption = re.search(r":caption: (.+)", options)
        found.append((language, caption[1] if caption else "", textwrap.dedent(content).strip()))
    return found


def commands(content: str, prompt: str = "$ ") -> list[str]:
    """Return the commands of a console block, each with the lines that it goes on over."""
    found: list[str] = []
    for line in content.splitlines():
        if line.startswith(prompt):
            found.append(line.removeprefix(prompt))
        elif found and found[-1].endswith("\\"):
            found[-1] += f"\n{line}"
    return found
