"""Invariant 13: published versions only rise, in the store and on each pod; and the fence of it.

A restore may give numbers again, until a master or a pod that knows better has told the leader.
"""

import json
from collections.abc import Iterator
from typing import Any

from tests.simulation.history import (
    KEYS,
    Commit,
    History,
    Kept,
    Published,
    Record,
    Settled,
    StoreView,
    decode,
    written,
)

WAY = 3.0  # seconds that a document may take to the pods, on links without faults


def fenced(history: History) -> Iterator[str]:
    """13: what is published is of the run under way, by the leader; its versions rise."""
    view = StoreView()
    for entry in history:
        raw = written(entry, KEYS.published) if isinstance(entry, Commit) else None
        now = None if raw is None else decode(raw)
        if now is not None:
            before = current(view) or {"version": 0, "documents": {}}
            at, documents = f"version {now['version']} at {entry.at:.3f}", now["documents"]
            if now["version"] <= before["version"]:
                yield f"{at} comes after version {before['version']}"
            changed = [key for key in documents if documents[key] != before["documents"].get(key)]
            running, leader = view.running or {}, view.leader or {}
            if now["term"] != leader.get("term"):
                yield f"{at} is of term {now['term']}, and the leader's is {leader.get('term')}"
            for key in changed:
                if now["runs"].get(key) != running.get("run") or running.get("ended", True):
                    yield f"{at} has {key} of run {now['runs'].get(key)}, which is not under way"
        view.apply(entry)


def only_rise(history: History) -> Iterator[str]:
    """13: on a pod, versions only rise, over restarts too, and each is one that was published."""
    held: dict[str, int] = {}
    published: set[str] = set()
    for entry in history:
        if isinstance(entry, Commit) and (raw := written(entry, KEYS.published)) is not None:
            record = decode(raw)
            published.add("" if record is None else text(record))
        if isinstance(entry, Kept):
            found: dict[str, Any] = json.loads(entry.content)
            before = held.get(entry.node, 0)
            if found["version"] <= before:
                yield f"{entry.node} gets {found['version']} after {before} at {entry.at:.3f}"
            if text(found) not in published:
                yield f"{entry.node} gets at {entry.at:.3f} what was never published: {found}"
            held[entry.node] = found["version"]


def answered(history: History) -> Iterator[str]:
    """13: what a callback was told is published was committed, under that version."""
    view = StoreView()
    seen: set[tuple[int, str, str]] = set()
    for entry in history:
        if view.apply(entry) and (record := current(view)) is not None:
            seen |= {(record["version"], k, repr(v)) for k, v in record["documents"].items()}
        match entry:
            case Published(_, _, run, key, value, int() as version):
                if (version, key, repr(value)) not in seen:
                    yield f"run {run} was told of version {version}, which is not there"


def latest_everywhere(history: History) -> Iterator[str]:
    """13: in the end, every pod that reports has what the store has, unless that is just new."""
    view, held, changed = StoreView(), dict[str, str](), 0.0
    for entry in history:
        before = view.raw.get(KEYS.published)
        view.apply(entry)
        if view.raw.get(KEYS.published) != before:
            changed = entry.at
        if isinstance(entry, Kept):
            held[entry.node] = text(json.loads(entry.content))
        record = current(view) if isinstance(entry, Settled) else None
        if isinstance(entry, Settled) and record is not None and entry.at - changed > WAY:
            for node in entry.followers:
                if held.get(node) != text(record):
                    yield f"{node} has {held.get(node)} in the end, and the store {text(record)}"


def current(view: StoreView) -> Record | None:
    """Return what the store has of it."""
    kv = view.raw.get(KEYS.published)
    return None if kv is None else decode(kv.value)


def text(record: Record) -> str:
    """Return what pods get of it."""
    return json.dumps([record["version"], record["documents"]], sort_keys=True)
