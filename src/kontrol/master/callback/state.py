"""What a callback may print: the state, as strict JSON (RFC 8259), in bounds.

It is kept as printed, byte for byte, and read by programs in any language: so what they read
differently (NaN, a number that becomes infinite, a member that is there twice) is refused.
"""

from kontrol.ensemble.canonical import NotJSON, parse

STATE_LIMIT = 512 * 1024  # bytes of JSON
STATE_DEPTH = 100  # arrays and objects within each other: parsers of any language take that


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
        parse(stdout, depth=STATE_DEPTH)
    except NotJSON as error:
        raise StateError(f"printed invalid JSON: {error}: {mend}") from None
    return state
