"""Live facts: JSON that a keepalive carries beside the record, in neither digest nor changes. Pure.

They may change with every keepalive, as a replication offset does. So an agent puts them at the end
of the text, behind a separator that the canonical JSON before and after cannot hold: a master
recognises a text that it knows without reading it (`kontrol.master.registry.known`).

`null` says that there are none any more. A keepalive without says nothing of them.
"""

from kontrol.ensemble.canonical import JSON, NotJSON, parse

MAX_LIVE = 4096  # bytes of JSON
LIVE_DEPTH = 32
NO_FACTS = "null"

_SEPARATOR = b', "live":'  # the space is what no canonical JSON has outside of strings


def attach(text: str, live: str) -> str:
    """Return the text of a keepalive, canonical JSON, with live facts, canonical JSON too."""
    return f"{text[:-1]}{_SEPARATOR.decode()}{live}}}"


def split(text: bytes) -> tuple[bytes, bytes]:
    """Return a keepalive without its live facts, and these; empty if there are none at its end.

    Nothing is read: the text of another client may have the separator elsewhere. Then one of the
    two parts is not JSON.
    """
    at = text.find(_SEPARATOR)
    if at < 0 or not text.endswith(b"}"):
        return text, b""
    return text[:at] + b"}", text[at + len(_SEPARATOR) : -1]


def without_live(text: str) -> str:
    """Return the text of a keepalive, as an agent made it, without its live facts."""
    at = text.find(_SEPARATOR.decode())
    return text if at < 0 else f"{text[:at]}}}"


def parse_live(text: bytes) -> JSON:
    """Read live facts. Raises `NotJSON` if they are no strict JSON, too large, or too deep."""
    if len(text) > MAX_LIVE:
        raise NotJSON(f"{len(text)} bytes; live facts are at most {MAX_LIVE} bytes of JSON")
    return parse(text, depth=LIVE_DEPTH)
