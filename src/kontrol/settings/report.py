"""What is in force and where it came from, as `kontrol config` prints it."""

import json

from kontrol.settings import variables as v
from kontrol.settings.resolve import MASTER, Resolved

_HEAD = ("VARIABLE", "VALUE", "SOURCE")


def rows(resolved: Resolved) -> list[tuple[str, str, str]]:
    """Return (variable, value, source) for all variables, and the tiers; secrets are masked."""
    lines: list[tuple[str, str, str]] = []
    for variable in v.VARIABLES:
        entry = resolved.entries.get(variable.name)
        if entry is not None:
            lines.append((variable.name, entry.text, entry.source))
        elif variable.secrecy != "value":  # one that is refused is not worth a line
            lines.append((variable.name, "", "not set"))
        if variable is v.ANNOTATIONS and MASTER in resolved.entries:
            tiers = resolved.entries[MASTER]
            lines.append((MASTER, tiers.text, tiers.source))
    return lines


def as_table(resolved: Resolved) -> str:
    """Return the rows as aligned columns under a head."""
    lines = [_HEAD, *((name, _one_line(text), source) for name, text, source in rows(resolved))]
    wide = [max(len(line[column]) for line in lines) for column in range(2)]
    wide[1] = min(wide[1], 60)
    return "\n".join(
        f"{name:<{wide[0]}}  {text:<{wide[1]}}  {source}" for name, text, source in lines
    )


def as_json(resolved: Resolved) -> str:
    """Return the rows, mistakes and notes as one JSON document."""
    document = {
        "values": [
            {"variable": name, "value": text or None, "source": source}
            for name, text, source in rows(resolved)
        ],
        "mistakes": [
            {"variable": mistake.name, "value": mistake.text, "expected": mistake.expected}
            for mistake in resolved.mistakes
        ],
        "notes": [text for _, text in resolved.notes],
    }
    return json.dumps(document, indent=2, ensure_ascii=False)


def _one_line(text: str) -> str:
    """Escape what would break the columns or steer a terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
