"""Reads a YAML manifest into nodes with their line and column.

The text is *composed*, never constructed: PyYAML builds its tree of nodes and stops there, so no
tag in the file can name a class, call a function or run code; such tags are refused with their
place. An alias is another reference to one node and is not copied. The walk below stops at a depth
and at a number of nodes that no manifest needs, so a file that would grow without end when expanded
is refused early.
"""

import yaml

from automaton.manifest import Kind, ManifestError, Node, Problem

MAX_BYTES = 1 << 20
MAX_NODES = 20_000
MAX_DEPTH = 8

_KINDS: dict[str, Kind] = {
    "tag:yaml.org,2002:str": "str",
    "tag:yaml.org,2002:int": "int",
    "tag:yaml.org,2002:float": "float",
    "tag:yaml.org,2002:bool": "bool",
    "tag:yaml.org,2002:null": "null",
    # Scalars of these kinds are text here, as written: a date can be a tag.
    "tag:yaml.org,2002:timestamp": "str",
    "tag:yaml.org,2002:value": "str",
    "tag:yaml.org,2002:merge": "str",
}


def read(path: str, raw: bytes) -> Node:
    """Parse `raw`, the content of the file `path`. Raises `ManifestError`."""
    if len(raw) > MAX_BYTES:
        raise _refusal(path, 1, 1, f"{len(raw)} bytes; a manifest has at most {MAX_BYTES}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise _refusal(
            path, line, column, f"byte {raw[error.start]:#04x} is not UTF-8; save it as UTF-8"
        ) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(filter(None, (error.context, error.problem)))
        raise _refusal(
            path,
            mark.line + 1 if mark else 1,
            mark.column + 1 if mark else 1,
            f"not YAML: {what}; indent with spaces, and quote what has ': ' or ' #' in it",
        ) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise _refusal(
            path, line, column, f"not YAML: {error.reason}; take the character out"
        ) from error
    except RecursionError:
        raise _refusal(
            path, 1, 1, "nested too deeply; a manifest is a map of lists of maps"
        ) from None
    if root is None:
        raise _refusal(path, 1, 1, "empty; a manifest has 'initial', 'terminal' and 'states'")
    return _Walk(path).node(root, MAX_DEPTH)


class _Walk:
    """Turns PyYAML's nodes into ours, and counts them."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._left = MAX_NODES

    def node(self, node: yaml.Node, depth: int) -> Node:
        mark = node.start_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        self._left -= 1
        if not depth or self._left < 0:
            raise _refusal(
                self._path,
                line,
                column,
                f"over {MAX_DEPTH} levels or {MAX_NODES} values once its aliases are expanded; "
                "write out what is needed",
            )
        match node:
            case yaml.ScalarNode() if node.tag in _KINDS:
                return Node(_KINDS[node.tag], line, column, text=node.value)
            case yaml.SequenceNode() if node.tag == "tag:yaml.org,2002:seq":
                items = tuple(self.node(item, depth - 1) for item in node.value)
                return Node("seq", line, column, items=items)
            case yaml.MappingNode() if node.tag == "tag:yaml.org,2002:map":
                entries = tuple(
                    (self.node(key, depth - 1), self.node(value, depth - 1))
                    for key, value in node.value
                )
                return Node("map", line, column, entries=entries)
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise _refusal(
            self._path, line, column, f"tag {tag}: a manifest is plain data; take the tag out"
        )


def _refusal(path: str, line: int, column: int, message: str) -> ManifestError:
    return ManifestError(path, [Problem(line, column, message)])
