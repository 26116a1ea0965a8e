"""Pods in words: the table, and one pod with all its fields."""

from collections.abc import Collection, Sequence

from kontrol.cli.operate_document import Doc
from kontrol.cli.table import Cell, Paper, pretty
from kontrol.ensemble.canonical import JSON

_SHOWN = ("seq", "id", "role", "ip", "key", "node", "zone", "payload")  # first, in this order


def table(pods: Sequence[Doc], paper: Paper) -> list[str]:
    """Return the table of pods, in the ensemble's order."""
    rows: list[list[str | Cell]] = [
        [
            f"#{pod.text('seq', '?')}",
            pod.text("id", "?"),
            pod.text("role"),
            pod.text("ip"),
            pod.text("key"),
            pod.text("node"),
            _payload(pod),
        ]
        for pod in pods
    ]
    return paper.table(("SEQ", "ID", "ROLE", "ADDRESS", "KEY", "NODE", "PAYLOAD"), rows, ("SEQ",))


def one(pod: Doc, paper: Paper) -> list[str]:
    """Return all that is known of one pod; a payload that is large goes below."""
    names = [name for name in _SHOWN if name in pod]
    names += sorted(name for name in pod.fields if name not in _SHOWN)
    lines: list[str] = []
    pairs: list[tuple[str, str | Cell]] = []
    for name in names:
        value = pod.fields[name]
        if isinstance(value, dict | list) and value:
            lines += [paper.paint(name, "dim")]
            lines += [f"  {line}" for line in pretty(value).splitlines()]
        else:
            pairs.append((name, pod.text(name) or pretty(value, indent=None)))
    return [*paper.fields(pairs), *lines]


def matching(pods: list[JSON], roles: Collection[str]) -> list[JSON]:
    """Return the pods of these roles; all if none is named."""
    return [
        pod for pod in pods if not roles or (isinstance(pod, dict) and pod.get("role") in roles)
    ]


def named(pods: list[JSON], name: str) -> JSON:
    """Return the pod with this id or key, else with this number, as `7` or `#7`; None if none."""
    for fields in (("id", "key"), ("seq",)):
        wanted = name if fields[0] == "id" else name.removeprefix("#")
        for pod in pods:
            if isinstance(pod, dict) and wanted in [str(pod.get(field)) for field in fields]:
                return pod
    return None


def _payload(pod: Doc) -> str:
    if "payload" not in pod:
        return ""
    value = pod.fields["payload"]
    return value if isinstance(value, str) else pretty(value, indent=None)
