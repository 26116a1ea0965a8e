"""Live facts: a run sees what its pods reported last, and nothing that they did not report.

That they cause no run, and are in no list of changes, the checks of runs and changes judge: to
these, they are no part of a pod.
"""

import json
from collections.abc import Iterator

from tests.simulation.checks.holds import SKEW, SLACK
from tests.simulation.health import NEVER, Health
from tests.simulation.history import (
    KEYS,
    Acknowledged,
    Commit,
    Fault,
    History,
    Process,
    Record,
    Restore,
    Sent,
    Started,
    StoreView,
    deleted,
)

WAY = 1.5  # seconds from the acknowledgement to where a leader reads them

_Key = tuple[str, str, str]


def seen_by_runs(history: History) -> Iterator[str]:
    """Where nothing is broken, a run has what each pod reported `WAY` before, or later.

    A pod that expires as the run starts is in its list, and its facts went with it.
    """
    health, view = Health(), StoreView()
    told: dict[_Key, list[tuple[float, float | None]]] = {}  # when acknowledged, and of when
    broken = float("-inf")
    for entry in history:
        health.apply(entry)
        view.apply(entry)
        match entry:
            case Fault():
                broken = entry.at
            case Restore():
                broken = entry.at
                told.clear()
            case Commit():  # the facts of a pod that is dropped go with it
                gone = set(deleted(entry, KEYS.pods))
                told = {pod: facts for pod, facts in told.items() if pod[1] not in gone}
            case Process(settings=settings, node=node) if settings is not None or node[:1] == "m":
                broken = entry.at
                told.clear()  # what it had not written yet; the next may be of a version without
            case Acknowledged(live=live) if live is not None:
                of = None if live < 0 else live
                told.setdefault((entry.id, entry.key, entry.nonce), []).append((entry.at, of))
            case Started() if health.fault_since(entry.at) == NEVER:
                ttl = max(health.settings[entry.node].ttl, *health.ttls)
                if entry.at - broken >= ttl * SKEW + SLACK:
                    pods = [pod for pod in json.loads(entry.pods) if pod["key"] in view.pods]
                    yield from _missing(entry, pods, told)


def _missing(
    run: Started, pods: list[Record], told: dict[_Key, list[tuple[float, float | None]]]
) -> Iterator[str]:
    live = dict(run.live)
    for pod in pods:
        known = told.get((pod["id"], pod["key"], pod["nonce"]), [])
        before = [of for at, of in known if at <= run.at - WAY]
        later = [of for at, of in known if at > run.at - WAY]
        if not before or (before[-1] is None and not later):
            continue
        seen = live.get(pod["key"])
        if seen is None:
            if before[-1] is not None and None not in later:
                yield f"run {run.run} sees no facts of {pod['id']}, told at {before[-1]:.3f}"
        elif before[-1] is not None and seen < before[-1]:
            yield (
                f"run {run.run} sees facts of {pod['id']} as of {seen:.3f}, though it told those "
                f"of {before[-1]:.3f}"
            )


def of_their_pods(history: History) -> Iterator[str]:
    """Facts are of the pod and the process that they are shown for, and of no later time."""
    begun: dict[_Key, float] = {}
    for entry in history:
        if isinstance(entry, Sent):
            begun.setdefault((entry.id, entry.key, entry.nonce), entry.at)
        if isinstance(entry, Started):
            pods = {pod["key"]: pod for pod in json.loads(entry.pods)}
            for key, of in entry.live:
                pod = pods[key]
                since = begun.get((pod["id"], key, pod["nonce"]), NEVER)
                if not since <= of <= entry.at:
                    yield (
                        f"run {entry.run} at {entry.at:.3f} sees facts of {pod['id']} as of "
                        f"{of:.3f}; its process reports since {since:.3f}"
                    )
