"""Draws a machine as text: Mermaid for Markdown pages, DOT for Graphviz.

Solid arrows are `next`, labelled ones `on`, dotted ones the way from every state to the terminal
one. The status of a running machine marks its current state and the path that it has taken.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from automaton.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Edge:
    """One arrow. `label` is empty for `next`; `implied` if it only leads to the terminal state."""

    source: str
    target: str
    label: str = ""
    implied: bool = False


@dataclass(frozen=True, slots=True)
class Trace:
    """The current state of a machine, and the steps that it has made."""

    current: str | None = None
    path: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, status: Mapping[str, Any]) -> "Trace":
        """Read it from the answer to `STATUS`."""
        visited = [entry["state"] for entry in status["history"]]
        return cls(status["state"], tuple(pairwise(visited)))


def edges(manifest: Manifest) -> Iterator[Edge]:
    """List the arrows of a machine, in the manifest's order."""
    order = list(manifest.states)
    for tag, state in manifest.states.items():
        if tag == manifest.terminal:
            continue
        labels: dict[str, list[str]] = {}
        for outcome, target in state.on.items():
            labels.setdefault(target, []).append(outcome)
        for target in order:
            if target in labels:
                yield Edge(tag, target, ", ".join(labels[target]))
            elif target in state.reach:
                yield Edge(tag, target)
        if manifest.terminal not in state.reach and manifest.terminal not in labels:
            yield Edge(tag, manifest.terminal, implied=True)


def mermaid(manifest: Manifest, trace: Trace) -> str:
    """Write a Mermaid flowchart."""
    ids = {tag: f"s{number}" for number, tag in enumerate(manifest.states)}
    lines = ["flowchart LR", f"    start(( )) --> {ids[manifest.initial]}"]
    for tag, name in ids.items():
        opening, closing = ("([", "])") if tag == manifest.terminal else ("[", "]")
        lines.append(f"    {name}{opening}{_quoted(tag, 'mermaid')}{closing}")
    taken = []
    for number, edge in enumerate(edges(manifest), start=1):
        arrow = "-.->" if edge.implied else "-->"
        label = f"|{edge.label}|" if edge.label else ""
        lines.append(f"    {ids[edge.source]} {arrow}{label} {ids[edge.target]}")
        if (edge.source, edge.target) in trace.path:
            taken.append(str(number))
    if taken:
        lines.append(f"    linkStyle {','.join(taken)} stroke:#c60,stroke-width:3px")
    if trace.current in ids:
        lines.append(f"    style {ids[trace.current]} fill:#fc6,stroke:#c60,stroke-width:3px")
    return "\n".join(lines)


def dot(manifest: Manifest, trace: Trace) -> str:
    """Write a DOT digraph."""
    lines = [
        "digraph automaton {",
        "    rankdir=LR; node [shape=box, style=rounded];",
        '    "" [shape=point];',
        f'    "" -> {_quoted(manifest.initial, "dot")};',
    ]
    for tag in manifest.states:
        attributes = ["peripheries=2"] if tag == manifest.terminal else []
        if tag == trace.current:
            attributes.append('style="rounded,filled", fillcolor="#ffcc66", color="#cc6600"')
        lines.append(f"    {_quoted(tag, 'dot')} [{', '.join(attributes)}];")
    for edge in edges(manifest):
        attributes = [f'label="{edge.label}"'] if edge.label else []
        if edge.implied:
            attributes.append("style=dotted")
        if (edge.source, edge.target) in trace.path:
            attributes.append('color="#cc6600", penwidth=3')
        ends = f"{_quoted(edge.source, 'dot')} -> {_quoted(edge.target, 'dot')}"
        lines.append(f"    {ends} [{', '.join(attributes)}];")
    return "\n".join([*lines, "}"])


def _quoted(tag: str, language: str) -> str:
    if language == "mermaid":
        return '"' + tag.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;") + '"'
    return '"' + tag.replace("\\", "\\\\").replace('"', '\\"') + '"'
