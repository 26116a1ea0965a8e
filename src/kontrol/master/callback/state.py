"""What a callback may print: the state, as strict JSON (RFC 8259), in bounds.

It is kept as printed, byte for byte, and read by programs in any language: so what only Python
takes for JSON (NaN, Infinity, a number that becomes infinite) is refused.
"""

import json
import math
import re
from typing import NoReturn

STATE_LIMIT = 512 * 1024  # bytes of JSON
STATE_DEPTH = 100  # arrays and objects within each other: parsers of any language take that

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


class StateError(ValueError):
    """What the callback printed is no state. The text says what it printed."""


def parse_state(stdout: bytes) -> bytes | None:
    """Return the JSON that was printed, as it was, without white space around; None if none was.

    Raises StateError if it is no strict JSON (RFC 8259) within `STATE_LIMIT` and `STATE_DEPTH`.
    """
    state = stdout.strip(b" \t\r\n")
    if not state:
        return None
    mend = "standard output is the state: write anything else to standard error"
    if len(state) > STATE_LIMIT:
        raise StateError(f"printed {len(state)} bytes, over {STATE_LIMIT}: {mend}")
    try:
        json.loads(stdout.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise StateError(f"printed invalid UTF-8 at byte {error.start}: {mend}") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise StateError(f"printed invalid JSON at {place}: {error.msg}: {mend}") from None
    except RecursionError:
        raise StateError(f"printed JSON nested over {STATE_DEPTH} deep: flatten it") from None
    except ValueError as error:  # an integer of thousands of digits, or our own refusal
        raise StateError(f"printed invalid JSON: {error}") from None
    if _depth(state) > STATE_DEPTH:
        raise StateError(f"printed JSON nested over {STATE_DEPTH} deep: flatten it")
    return state


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON: print null, or a string")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is out of range: print it as a string")
    return value


def _depth(valid: bytes) -> int:
    """Return how deep valid JSON is nested."""
    deepest = depth = 0
    for bracket in re.findall(rb"[][{}]", _STRING.sub(b"", valid)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
