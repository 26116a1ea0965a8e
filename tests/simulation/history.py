"""What happened in a simulation, as frozen events in the order in which it happened.

Two witnesses tell it: the store's own log of commits, and the world outside, which knows when
processes really ran, what agents were told, and what was broken when. Neither is the code under
test. `at` is virtual time in seconds.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kontrol.master.records.keys import Keys
from kontrol.store.protocol import Event as Change

KEYS = Keys.of("default", "test")
STORE = "etcd"  # the store's name as an end of links, and as a node


@dataclass(frozen=True, slots=True)
class Commit:
    """One revision of the store."""

    at: float
    revision: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Started:
    """A callback's process began. `pods` is a JSON array, `given` the JSON object of changes."""

    at: float
    node: str
    run: int
    term: int
    digest: str
    pods: bytes
    given: bytes
    state: bytes | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The process and all its descendants are gone. `state` is what it printed, if `ok`."""

    at: float
    run: int
    ok: bool
    state: bytes | None = None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A keepalive sent at `sent` was answered."""

    at: float
    sent: float
    id: str
    key: str
    nonce: str
    n: int
    seq: int


@dataclass(frozen=True, slots=True)
class Farewell:
    """An agent sends its farewell."""

    at: float
    id: str
    key: str


@dataclass(frozen=True, slots=True)
class Process:
    """An agent's process or a master's begins or ends, however."""

    at: float
    node: str
    up: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """A master died by itself, or would not end; or raised at a keepalive."""

    at: float
    node: str
    why: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Something breaks or is mended: a node is `paused`, a link `cut`, `lossy` or in a `stall`."""

    at: float
    what: str  # paused, cut, lossy, stall
    a: str
    b: str = ""
    on: bool = True


@dataclass(frozen=True, slots=True)
class Settled:
    """The end: all faults are mended and nothing changes any more. `alive`: (id, key, payload)."""

    at: float
    alive: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """An operator asks a master: for a `run`, a `release` or a `rollback`."""

    at: float
    node: str
    kind: str


Entry = (
    Commit | Started | Ended | Acknowledged | Farewell | Process | Failure | Fault | Settled | Asked
)
History = tuple[Entry, ...]

Record = dict[str, Any]


@dataclass(slots=True)
class Book:
    """The tier's part of the store as it is after some commits, decoded."""

    revision: int = 0
    pods: dict[str, Record] = field(default_factory=dict)
    seats: dict[str, Record] = field(default_factory=dict)
    single: dict[str, bytes] = field(default_factory=dict)  # running, applied, state

    def apply(self, commit: Commit) -> None:
        """Take a commit in."""
        self.revision = commit.revision
        for change in commit.changes:
            key, value = change.kv.key, change.kv.value
            put = change.type == "put"
            for prefix, records in ((KEYS.pods, self.pods), (KEYS.seats, self.seats)):
                if key.startswith(prefix):
                    name = key.removeprefix(prefix)
                    if put:
                        records[name] = json.loads(value)
                    else:
                        records.pop(name, None)
            if key in (KEYS.running, KEYS.applied, KEYS.state):
                if put:
                    self.single[key] = value
                else:
                    self.single.pop(key, None)

    @property
    def running(self) -> Record | None:
        return self._record(KEYS.running)

    @property
    def applied(self) -> Record | None:
        return self._record(KEYS.applied)

    @property
    def state(self) -> bytes | None:
        return self.single.get(KEYS.state)

    @property
    def listed(self) -> list[Record]:
        """The pods in order of `seq`, as a callback would see them."""
        pods = sorted(self.pods.values(), key=lambda pod: int(pod["seq"]))
        return [{name: pod[name] for name in pod if name != "n"} for pod in pods]

    def _record(self, key: str) -> Record | None:
        raw = self.single.get(key)
        return None if raw is None else json.loads(raw)


def puts(commit: Commit, prefix: str) -> Iterator[tuple[str, Record]]:
    """Yield (name, record) of each key below `prefix` that a commit wrote."""
    for change in commit.changes:
        if change.type == "put" and change.kv.key.startswith(prefix):
            yield change.kv.key.removeprefix(prefix), json.loads(change.kv.value)


def deleted(commit: Commit, prefix: str) -> list[str]:
    """Return the names below `prefix` that a commit deleted."""
    return [
        change.kv.key.removeprefix(prefix)
        for change in commit.changes
        if change.type == "delete" and change.kv.key.startswith(prefix)
    ]


def written(commit: Commit, key: str) -> bytes | None:
    """Return what a commit put at `key`, None if it did not."""
    for change in commit.changes:
        if change.type == "put" and change.kv.key == key:
            return change.kv.value
    return None


def show(history: Iterable[Entry], start: float) -> Iterator[str]:
    """Yield a line for each entry, for people; times count from `start`."""
    for entry in history:
        yield f"{entry.at - start:9.3f}  {_line(entry)}"


def _line(entry: Entry) -> str:
    match entry:
        case Commit(_, revision, changes):
            text = f"commit {revision}: " + ", ".join(map(_change, changes))
        case Started():
            given = {name: len(rows) for name, rows in json.loads(entry.given).items() if rows}
            pods = [pod["id"] for pod in json.loads(entry.pods)]
            text = f"RUN {entry.run} of term {entry.term} on {entry.node}: {pods}, {given}"
        case Ended():
            text = f"run {entry.run} ended: {'ok' if entry.ok else 'failed'} {entry.state!r}"
        case Acknowledged(at, sent):
            text = f"{entry.id} is #{entry.seq} (n {entry.n}, sent {at - sent:.3f} s ago)"
        case Farewell():
            text = f"{entry.id} says farewell"
        case Process():
            text = f"{entry.node} {'starts' if entry.up else 'is gone'}"
        case Failure():
            text = f"{entry.node}: {entry.why}"
        case Asked():
            text = f"{entry.node} is asked for a {entry.kind}"
        case Fault():
            text = f"{entry.what} {entry.a} {entry.b} {'on' if entry.on else 'off'}"
        case _:
            text = f"settled: {entry.alive}"
    return text


def _change(change: Change) -> str:
    value = change.kv.value[:90].decode("utf-8", "replace")
    sign = "+" if change.type == "put" else "-"
    return f"{sign}{change.kv.key.removeprefix(KEYS.root)} {value}".rstrip()
