"""A machine: its states, and the states that may follow each.

A manifest is read from YAML (`automaton.yamlfile`) or from Python (`automaton.pyfile`) into one
tree of `Node`s with their places in the file, and `automaton.validate` turns the tree into the
`Manifest` below. So both forms have the same rules and the same messages.

Invariant: a `Manifest` that exists is consistent. Its `initial`, its `terminal` and every
state that an `on` names are among its states, and every pattern in a `next` has been expanded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

SHELL = "/bin/sh"
TERMINAL_SECONDS = 20.0
"""Seconds for the terminal script unless it has a `timeout`. With 1 s of leeway and 5 s of grace
before it, a shutdown ends within the 30 s that Kubernetes allows by default."""

FAULTY = 3
"""Exit status of the worker that reads a Python manifest, for an invalid file."""


class Outcome(StrEnum):
    """How a script ended; the keys of `on`."""

    SUCCESS = "success"
    FAILURE = "failure"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class State:
    """One state: its script, and the states that may follow.

    `argv` is empty for a state without a script. `reach` are the tags that its `next` matches; the
    terminal state can always be reached. `timeout` is in seconds.
    """

    tag: str
    argv: tuple[str, ...] = ()
    reach: frozenset[str] = frozenset()
    force: bool = False
    timeout: float | None = None
    on: Mapping[Outcome, str] = field(default_factory=dict)
    retry: int = 0
    env: Mapping[str, str] = field(default_factory=dict)

    def follows(self, outcome: Outcome) -> str | None:
        """Return the state that `on` gives for an outcome, if any; a timeout is also a failure."""
        if outcome is Outcome.TIMEOUT and Outcome.TIMEOUT not in self.on:
            return self.on.get(Outcome.FAILURE)
        return self.on.get(outcome)


@dataclass(frozen=True, slots=True)
class Probe:
    """A command that prints the JSON that a file is to report. Times in seconds."""

    argv: tuple[str, ...]
    every: float
    timeout: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """A consistent machine. `payload` is the file for the current state, if any.

    `live` is the file for live facts. `probes` are those of the two, by `payload` and `live`.
    """

    initial: str
    terminal: str
    states: Mapping[str, State]
    payload: str | None = None
    live: str | None = None
    probes: Mapping[str, Probe] = field(default_factory=dict)

    def limit(self, tag: str) -> float | None:
        """Return for how many seconds a state's script may run; None: no limit."""
        timeout = self.states[tag].timeout
        if tag == self.terminal and timeout is None:
            return TERMINAL_SECONDS
        return timeout


Kind = Literal["str", "int", "float", "bool", "null", "seq", "map"]


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its place. Lines and columns count from 1.

    `kind` is that of YAML: `str`, `int`, `float`, `bool` and `null` have their text, as written, in
    `text`; a `seq` has `items`; a `map` has `entries`.
    """

    kind: Kind
    line: int
    column: int
    text: str = ""
    items: tuple["Node", ...] = ()
    entries: tuple[tuple["Node", "Node"], ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One problem of a manifest: its place, and a message with the fix."""

    line: int
    column: int
    message: str
    severity: Literal["error", "warning"] = "error"

    def render(self, path: str) -> str:
        """Return it in the form of compilers, so that editors find the place."""
        return f"{path}:{self.line}:{self.column}: {self.severity}: {self.message}"


class ManifestError(Exception):
    """A manifest that cannot be used; `problems` holds every error and warning found."""

    def __init__(self, path: str, problems: list[Problem]) -> None:
        self.path = path
        self.problems = sorted(problems)
        super().__init__("\n".join(problem.render(path) for problem in self.problems))
