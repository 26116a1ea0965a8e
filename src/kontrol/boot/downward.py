"""The downward API: facts that Kubernetes gives a pod in variables and in files.

The pod's author chooses the names of the variables; these are the customary ones. The files are
those of a downwardAPI volume: `name`, `namespace`, and `labels` and `annotations` with one
`key="value"` per line, the value quoted as Go's `%q` does.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from kontrol.boot import PODINFO, Misconfigured
from kontrol.boot.facts import Fact, encode, layer
from kontrol.settings import variables as v

# our variable: the customary one for the same
VARIABLES = {
    v.NAMESPACE.name: "POD_NAMESPACE",
    v.ID.name: "POD_NAME",
    v.IP.name: "POD_IP",
    v.HOST.name: "HOST_IP",
    v.HOSTNAME.name: "NODE_NAME",
}
_TEXTS = {v.NAMESPACE.name: "namespace", v.ID.name: "name"}
_TABLES = {v.LABELS.name: "labels", v.ANNOTATIONS.name: "annotations"}

_LINE = re.compile(r'([^="\s]+)="((?:[^"\\]|\\.)*)"\Z')
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.DOTALL)
_SHORT = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_SHORT |= {"\\": "\\", '"': '"', "'": "'"}


def read(environ: Mapping[str, str], folder: Path = PODINFO) -> dict[str, Fact]:
    """Return the facts in the variables and the files; none without them.

    Raises `Misconfigured` if a file exists and does not have that form.
    """
    texts: dict[str, str | None] = {ours: environ.get(theirs) for ours, theirs in VARIABLES.items()}
    for ours, name in _TEXTS.items():
        texts[ours] = texts[ours] or _content(folder / name)
    for ours, name in _TABLES.items():
        content = _content(folder / name)
        if content is not None:
            texts[ours] = encode(parse(content, folder / name))
    return layer("downward", texts)


def parse(text: str, path: Path) -> dict[str, str]:
    r"""Return the entries of a file of labels or annotations. Raises `Misconfigured`.

    Lines end with `\n` alone: whatever else could end a line is escaped within a value.
    """
    entries: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        match = _LINE.match(line)
        if match is None:
            raise Misconfigured(
                f'{path}:{number}: expected key="value" as in a downwardAPI volume, not '
                f"{line[:80]!r}"
            )
        entries[match[1]] = _ESCAPE.sub(_unescape, match[2])
    return entries


def _unescape(match: re.Match[str]) -> str:
    byte, short, long, char = match.groups()
    if char is not None:
        return _SHORT.get(char, char)
    code = int(byte or short or long, 16)
    if byte and code > 0x7F:  # an octet that is not UTF-8
        return "\N{REPLACEMENT CHARACTER}"
    return "\N{REPLACEMENT CHARACTER}" if code > 0x10FFFF or 0xD800 <= code < 0xE000 else chr(code)


def _content(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{path}: {error}; expected a file of a downwardAPI volume") from None
