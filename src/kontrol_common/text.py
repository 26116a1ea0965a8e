r"""Text that is fit for a terminal and for one line of a log, wherever it comes from.

The rule, the same everywhere: a character is shown as an escape if its Unicode general category is
*Other* or *Separator*, except for the space. So these are escaped, and nothing else is:

    Cc  controls: ends of lines, tabs, ESC, DEL, the C1 set
    Cf  format characters: bidirectional marks, overrides and isolates, zero-width characters,
        the byte order mark, tags
    Cs  surrogates: what was not UTF-8
    Co, Cn  private use and unassigned: what they do is up to the terminal
    Zl, Zp, Zs  separators: line, paragraph, and all spaces other than U+0020

It is Python's own rule for `repr` (`str.isprintable`), so quoted texts look the same. An escape is
written as Python writes it: `\n`, `\x1b`, `\u200f`.
A backslash is no such character, so escapes cannot be undone: this is for people.
"""

import re

_SUSPECT = re.compile(r"[^ -~]")
_SUSPECT_IN_JSON = re.compile(r"[^\n -~]")  # a line end within a text is an escape already


def escaped(text: str, keep: str = "") -> str:
    """Return `text` with an escape for each character of the rule that is not in `keep`."""
    if text.isprintable():
        return text

    def shown(found: re.Match[str]) -> str:
        char = found[0]
        return char if char.isprintable() or char in keep else _escape(char)

    return _SUSPECT.sub(shown, text)


def escaped_json(value: object, indent: int | None = None) -> str:
    """Return JSON in which the characters of the rule are escapes, as JSON writes them.

    A reader gets the same value back. With `indent`, in spaces, line ends between values stay.
    Raises `TypeError` for what has no form in JSON.
    """
    import json

    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _SUSPECT_IN_JSON.sub(
        lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text
    )


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
