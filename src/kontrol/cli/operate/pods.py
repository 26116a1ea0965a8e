"""Pods in words: the table, and one pod with all its fields."""

from collections.abc import Collection, Sequence

from kontrol.cli.operate.document import UntrustedJson
from kontrol.cli.table import Cell, Console
from kontrol.ensemble.canonical import JSON
from kontrol_common.text import escaped_json

_RARE = ("node", "zone", "payload")
_FIRST = ("seq", "id", "role", "ip", "key", *_RARE)


def table(pods: Sequence[UntrustedJson], paper: Console) -> list[str]:
    """Return the table of pods, in the ensemble's order; what none of them has is left out."""
    columns = [("SEQ", "seq"), ("ID", "id"), ("ROLE", "role"), ("ADDRESS", "ip"), ("KEY", "key")]
    columns += [(name.upper(), name) for name in _RARE if any(pod.fields.get(name) for pod in pods)]
    rows: list[list[str | Cell]] = [[_shown(pod, name) for _, name in columns] for pod in pods]
    return paper.table([head for head, _ in columns], rows, ("SEQ",))


def one(pod: UntrustedJson, paper: Console) -> list[str]:
    """Return all that is known of one pod; a payload that is large goes below."""
    names = [name for name in _FIRST if name in pod]
    names += sorted(name for name in pod.fields if name not in _FIRST)
    lines: list[str] = []
    pairs: list[tuple[str, str | Cell]] = []
    for name in names:
        value = pod.fields[name]
        if isinstance(value, dict | list) and value:
            lines += [paper.paint(name, "dim")]
            lines += [f"  {line}" for line in escaped_json(value, indent=2).splitlines()]
        else:
            pairs.append((name, pod.text(name) or escaped_json(value)))
    return [*paper.fields(pairs), *lines]


def matching(pods: list[JSON], roles: Collection[str]) -> list[JSON]:
    """Return the pods of these roles; all if none is named."""
    return [
        pod for pod in pods if not roles or (isinstance(pod, dict) and pod.get("role") in roles)
    ]


def named(pods: list[JSON], name: str) -> JSON:
    """Return the pod with this id or key, else with this number, as `7` or `#7`; None if none."""
    records = [pod for pod in pods if isinstance(pod, dict)]
    for pod in records:
        if name in (pod.get("id"), pod.get("key")):
            return pod
    number = name.removeprefix("#")
    return next((pod for pod in records if str(pod.get("seq")) == number), None)


def _shown(pod: UntrustedJson, name: str) -> str:
    value = pod.fields.get(name, "")
    if name == "seq":
        return f"#{pod.text('seq', '?')}"
    return value if isinstance(value, str) else escaped_json(value)
