"""The rules that no schedule may break, as judged at each start of the callback."""

import json
from dataclasses import dataclass, field

from tests.e2e.observed import Pod, Process, Run


@dataclass
class History:
    """What happened before. `acknowledged` are runs that a master said so of, by number.

    The first `forgotten` runs were for a store that is not what it was: of them only the numbers
    and the processes count. `asked`: operators ask for runs, which may be for what is acknowledged.
    """

    runs: list[Run] = field(default_factory=list)
    descendants: list[Process] = field(default_factory=list)
    acknowledged: dict[int, Run] = field(default_factory=dict)
    asked: bool = False
    forgotten: int = 0

    @property
    def current(self) -> list[Run]:
        """The runs that the store may know of."""
        return self.runs[self.forgotten :]


def violations(history: History, run: Run) -> list[str]:
    """Return what of a run that has just started breaks a rule."""
    found = (*_overlaps(history, run), *_misinformed(history, run), *_needless(history, run))
    return [f"run {run.number} of term {run.term}: {violated}" for violated in found]


def _overlaps(history: History, run: Run) -> list[str]:
    earlier = [*history.runs, *history.descendants]
    found = [f"process {other.pid} of a run before lives" for other in earlier if other.alive]
    found += [
        f"run {other.number} was alive {other.beat - run.started:.3f} s after this one began"
        for other in history.runs
        if other.beat > run.started
    ]
    if history.runs:
        last = history.runs[-1]
        if run.number <= last.number:
            found.append(f"its number is not over {last.number}")
        if run.term < last.term:
            found.append(f"its term is below {last.term}")
    return found


def _misinformed(history: History, run: Run) -> list[str]:
    """Compare all that the run was given with itself and with the run that it follows."""
    document, env = run.document, run.env
    found = []
    for name in ("pods", "state", "changes"):
        text = env.get(name.upper())
        if text is not None and json.loads(text) != document.get(name):
            found.append(f"{name} differ between environment and standard input")
        text = run.files[f"{name.upper()}_FILE"]
        if (None if text is None else json.loads(text)) != document.get(name):
            found.append(f"{name} differ between file and standard input")
    for name, key in (
        ("HASH", "hash"),
        ("MD5", "hash"),
        ("TERM_ID", "term_id"),
        ("RUN", "run"),
    ):
        if env[name] != str(document[key]):
            found.append(f"{name} is {env[name]}, on standard input {document[key]}")
    for key in ("seq", "key", "id"):
        values = [pod[key] for pod in run.pods]
        if len(set(values)) < len(values):
            found.append(f"two pods have the same {key}")
    differences = [_differences(before, run) for before in _before(history, run)]
    if differences and all(differences):
        found += differences[-1]
    return found


def _before(history: History, run: Run) -> list[list[Pod]]:
    """The pods of the runs that may be the last acknowledged one, best guess last.

    It is the one that the state names, or a later one: of a leader that died, only the store
    may know that its run was acknowledged. None: unknown.
    """
    if not history.acknowledged:
        return [] if history.forgotten or run.state is not None else [[]]
    state = run.document.get("state")
    named = state.get("run", 0) if isinstance(state, dict) else 0
    floor = max(named, *history.acknowledged)
    found = [other for other in history.current if other.number >= floor and not other.doomed]
    return [other.pods for other in reversed(found)]


def _needless(history: History, run: Run) -> list[str]:
    last = history.runs[-1] if history.runs and not history.asked else None
    if last is None or last.number not in history.acknowledged or last.digest != run.digest:
        return []
    return [f"it runs for {run.digest}, which run {last.number} acknowledged"]


def _differences(before: list[Pod], run: Run) -> list[str]:
    """Tell what of a run's `CHANGES` is not the difference between `before` and its pods.

    Live facts are no part of it.
    """
    was, now = (
        {pod["seq"]: {name: pod[name] for name in pod if name != "live"} for pod in pods}
        for pods in (before, run.pods)
    )
    told = {kind: {row["seq"] for row in rows} for kind, rows in run.document["changes"].items()}
    found = []
    true = {
        "joined": now.keys() - was.keys(),
        "changed": {seq for seq in now.keys() & was.keys() if now[seq] != was[seq]},
    }
    for kind, seqs in true.items():
        if told[kind] != seqs:
            found.append(f"{kind} are told as {told[kind]}, and truly {seqs}")
    gone = was.keys() - now.keys()
    if told["left"] | told["lost"] != gone or told["left"] & told["lost"]:
        found.append(f"gone are {gone}; told as left {told['left']} and lost {told['lost']}")
    return found
