"""JSON in one form, so that equal values have equal bytes.

Keys are sorted, there is no white space, and no escape that JSON does not require; UTF-8. Digests
and hashes are of this form. A change of it would change every digest, so a golden test freezes it.
"""

import json
from typing import TypeAlias

from kontrol_common.strictjson import deeper, loads

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


class NotJSON(ValueError):
    """A text that is not the strict JSON that Kontrol accepts; the message says where and why."""


def canonical(value: object) -> bytes:
    """Encode a JSON value. Raises `NotJSON` for NaN, infinities, lone surrogates, other types."""
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise NotJSON(f"a string holds a lone surrogate, {error.object[error.start]!r}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise NotJSON(str(error)) from None


def parse(text: str | bytes, *, depth: int) -> JSON:
    """Decode strict JSON, at most `depth` levels deep.

    Raises `NotJSON` if the text is not JSON or not UTF-8, is too deep, or holds NaN, an infinite
    number, a lone surrogate, or an object with a member twice: readers disagree on which counts.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value: JSON = loads(text)
        if "\\u" in text:  # the only way to a lone surrogate in text that decoded as UTF-8
            canonical(value)
    except UnicodeDecodeError as error:
        raise NotJSON(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise NotJSON(f"nested deeper than {depth} levels") from None
    except json.JSONDecodeError as error:
        raise NotJSON(f"line {error.lineno} column {error.colno}: {error.msg}") from None
    except ValueError as error:
        raise NotJSON(str(error)) from None
    # Few brackets cannot nest deeper than the limit: this is enough for most records.
    if text.count("[") + text.count("{") > depth and deeper(value, depth):
        raise NotJSON(f"nested deeper than {depth} levels")
    return value
