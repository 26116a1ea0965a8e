"""Renders the index of decision records from the records themselves."""

import re
from pathlib import Path

FOLDER = Path(__file__).parent / "decisions"

_TITLE = re.compile(r"# (\d{4}): (.+)")
_STATUS = re.compile(r"\*\*Status:\*\* (.+?)\.?\n\n", re.DOTALL)
_LINK = re.compile(r"\[(\d{4})\]\(\S+?\)")


def render() -> str:
    """Return the table: number, title and status of each record. Raises `ValueError`."""
    rows = [
        ".. list-table::\n   :header-rows: 1\n   :widths: 10 60 30\n",
        "   * - Number\n     - Title\n     - Status",
    ]
    for path in sorted(FOLDER.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        title = _TITLE.match(text)
        if title is None or not path.name.startswith(f"{title[1]}-"):
            msg = f"{path.name} begins with {text.splitlines()[0]!r}: expected `# NNNN: Title`"
            raise ValueError(msg)
        found = _STATUS.search(text)
        status = "Accepted" if found is None else " ".join(found[1].split())
        status = _LINK.sub(r"\1", status).replace("`", "``")
        name = title[2].replace("`", "")
        rows.append(
            f"   * - {title[1]}\n     - :doc:`{name} <{path.stem}>`\n"
            f"     - {status[0].upper()}{status[1:]}"
        )
    return "\n".join(rows) + "\n"
