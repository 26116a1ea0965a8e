"""Reads a Python manifest: a worker process describes it, and the description becomes nodes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from automaton.manifest import FAULTY, Kind, ManifestError, Node, Problem

DESCRIBE_SECONDS = 30.0


Argv = dict[str, tuple[str, ...]]


def read(path: Path) -> tuple[Node, Argv, Argv]:
    """Return the manifest's tree, the command of each state by tag, and those of probes.

    The last are of probes that are functions, by `payload` or `live`. Raises `ManifestError`.
    """
    # -P: a file in the working directory must not stand in for a module of ours.
    worker = (sys.executable, "-P", "-u", "-X", "utf8", "-m", "automaton.pyworker")
    try:
        described = subprocess.run(
            [*worker, "describe", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=DESCRIBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _refusal(
            path, 1, f"not read in {DESCRIBE_SECONDS:g} s; work belongs in the functions of states"
        ) from None
    try:
        document = json.loads(described.stdout)
    except ValueError:
        raise _refusal(
            path, 1, f"ended with status {described.returncode} while it was read"
        ) from None
    if described.returncode == FAULTY:
        raise _refusal(path, document["line"], document["message"])
    fields = document["fields"]
    states = [_node(state["fields"], state["line"]) for state in document["states"]]
    line = document["line"]
    top = _node(fields, line)
    listed = (_node("states", line), Node("seq", line, 1, items=tuple(states)))
    reports = document["reports"]
    extra = [
        (_node(name, report["line"]), _node(report["fields"], report["line"]))
        for name, report in reports.items()
    ]
    file = str(path.absolute())
    argv: Argv = {
        state["fields"]["tag"]: (*worker, "run", file, state["fields"]["tag"])
        for state in document["states"]
    }
    probes: Argv = {
        name: (*worker, "probe", file, name)
        for name, report in reports.items()
        if not report["script"]
    }
    return Node("map", line, 1, entries=(*top.entries, *extra, listed)), argv, probes


def _node(value: Any, line: int) -> Node:  # noqa: ANN401  # a JSON value
    match value:
        case dict():
            entries = tuple((_node(key, line), _node(item, line)) for key, item in value.items())
            return Node("map", line, 1, entries=entries)
        case list():
            return Node("seq", line, 1, items=tuple(_node(item, line) for item in value))
        case _:
            kind: Kind = _KINDS[type(value)]
            text = json.dumps(value) if kind == "bool" else str(value)
            return Node(kind, line, 1, text=text)


_KINDS: dict[type, Kind] = {
    str: "str",
    bool: "bool",
    int: "int",
    float: "float",
    type(None): "null",
}


def _refusal(path: Path, line: int, message: str) -> ManifestError:
    return ManifestError(str(path), [Problem(line, 1, message)])
