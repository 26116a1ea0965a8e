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
from kontrol.store.protocol import KeyValue

KEYS = Keys.of("default", "test")
STORE = "etcd"  # the store's name as an end of links, and as a node


@dataclass(frozen=True, slots=True)
class Settings:
    """What a master is started with. Times in seconds, `brake` in percent.

    `ceiling` is that of the damper; `age` is how old an unused registration gets, `sweep` how often
    the leader looks for such. `every` is KONTROL_EVERY, 0 without, and `urgent` KONTROL_URGENT.
    """

    ttl: float = 10.0
    fover: float = 6.0
    damper: float = 0.5
    ceiling: float = 3.0
    brake: float = 50.0
    age: float = 24 * 3600.0
    sweep: float = 3600.0
    every: float = 0.0
    urgent: str = ""

    def __str__(self) -> str:
        every = f", every {self.every:g}" if self.every else ""
        urgent = f", urgent {self.urgent}" if self.urgent else ""
        return (
            f"ttl {self.ttl:g}, fover {self.fover:g}, damper {self.damper:g} to "
            f"{self.ceiling:g}, brake {self.brake:g}, age {self.age:g}{every}{urgent}"
        )


@dataclass(frozen=True, slots=True)
class Commit:
    """One revision of the store."""

    at: float
    revision: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Started:
    """A callback's process began. `pods` is a JSON array, `given` the JSON object of changes.

    The pods are without their live facts: `live` says of when these are, by the pod's key.
    """

    at: float
    node: str
    run: int
    term: int
    digest: str
    pods: bytes
    given: bytes
    state: bytes | None
    spec: bytes | None = b"{}"
    live: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """The process and all its descendants are gone. If `ok`, `state` is what it printed.

    `again` is in how many seconds it asked to run again, and `note` what it left for people.
    """

    at: float
    run: int
    ok: bool
    state: bytes | None = None
    again: float | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A keepalive sent at `sent` was answered, with the TTL that rules.

    `live` is of when its live facts are, below 0 if it said that there are none.
    """

    at: float
    sent: float
    id: str
    key: str
    nonce: str
    n: int
    seq: int
    ttl: float = 0.0
    live: float | None = None


@dataclass(frozen=True, slots=True)
class Deregistered:
    """An agent deregisters its pod."""

    at: float
    id: str
    key: str


@dataclass(frozen=True, slots=True)
class Process:
    """An agent's process or a master's begins or ends, however.

    A master begins with its settings; an agent under an identity: by default the id is the node.
    `hooks` tells whether it has hooks to run when it is silent.
    """

    at: float
    node: str
    up: bool
    settings: Settings | None = None
    id: str = ""
    key: str = ""
    hooks: bool = True


@dataclass(frozen=True, slots=True)
class Failure:
    """A master died by itself, or would not end; or raised at a keepalive."""

    at: float
    node: str
    why: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Something breaks or is whole again, see `FAULTS`."""

    at: float
    what: str
    a: str
    b: str = ""
    on: bool = True


@dataclass(frozen=True, slots=True)
class Settled:
    """The end: all faults are over and nothing changes any more. `alive`: (id, key, payload).

    `fingerprint` is the callback that all masters have, empty if they have not the same.
    `followers` are the hosts of agents that keep what is published.
    """

    at: float
    alive: tuple[tuple[str, str, str], ...]
    fingerprint: str = ""
    followers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """An operator asks a master: for a `run`, a `release` or a `rollback`."""

    at: float
    node: str
    kind: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """An operator asks a master to set a key of the desired state, or to unset it with None.

    If it `expects`, only where the key has the value `expected`, None for no value.
    """

    at: float
    node: str
    number: int
    key: str
    value: bytes | None
    expects: bool = False
    expected: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to that: `made`, `same`, `other` (not as expected), `unknown` or `refused`."""

    at: float
    number: int
    result: str


@dataclass(frozen=True, slots=True)
class Publishing:
    """A run on `node` is about to publish a document."""

    at: float
    node: str
    run: int
    key: str


@dataclass(frozen=True, slots=True)
class Published:
    """It was told that its document is published, in a `version`; None if it was refused."""

    at: float
    node: str
    run: int
    key: str
    value: int
    version: int | None


@dataclass(frozen=True, slots=True)
class Kept:
    """The agent on `node` has replaced the file of what is published."""

    at: float
    node: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Restore:
    """The store was restored from a snapshot, `kvs`; `kind` is how, see `RESTORES`."""

    at: float
    kind: str
    revision: int
    kvs: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class Leased:
    """A lease is granted or refreshed: it ends `ttl` seconds from now, if nothing comes."""

    at: float
    lease: int
    ttl: int


@dataclass(frozen=True, slots=True)
class Elected:
    """The store has another leader: every lease has its whole time again."""

    at: float


@dataclass(frozen=True, slots=True)
class Sent:
    """The agent on `node` reports under a nonce for the first time."""

    at: float
    node: str
    id: str
    key: str
    nonce: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """An agent's keepalive is refused by a master, or a master's request by the store."""

    at: float
    node: str
    name: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Unsure:
    """The answer to a transaction of a master, which was to put `keys`, does not come in time."""

    at: float
    node: str
    keys: tuple[str, ...]
    done: bool


@dataclass(frozen=True, slots=True)
class Fenced:
    """A write of a master is refused, because the term that it was made in is over."""

    at: float
    node: str


@dataclass(frozen=True, slots=True)
class Replaced:
    """The callback of a master is another from now on, while it runs."""

    at: float
    node: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Hook:
    """A hook of the pod on `node` begins, or is over: `what` says how."""

    at: float
    node: str
    name: str
    what: str


@dataclass(frozen=True, slots=True)
class Garbage:
    """An operator writes at a key what is no record."""

    at: float
    key: str


FAULTS = {
    "paused": "a node does not run",
    "cut": "nothing passes a link",
    "lossy": "a link loses some messages and delays others",
    "stall": "what is sent over a link waits there",
    "mute": "what the store answers to a master is lost",
    "lag": "each watch of a master gets what it has up to 5 s late",
    "distant": "a round trip over a link takes 1 to 5 s",
    "denied": "the store refuses the credentials of a master",
    "full": "the store takes no puts",
}
RESTORES = {
    "lower": "the revision is that of the snapshot",
    "other": "so it is, and the cluster's id is another",
    "raised": "the revision is raised above all that was, the id is another",
    "marked": "so it is, the id is the same, and all before is compacted",
}

Entry = (
    Commit | Restore | Leased | Elected | Started | Ended | Sent | Acknowledged | Refusal
    | Deregistered | Process | Failure | Fault | Settled | Asked | Unsure | Fenced | Replaced
    | Garbage | Hook | Wanted | Answered | Publishing | Published | Kept
)  # fmt: skip
History = tuple[Entry, ...]

Record = dict[str, Any]

_POD = frozenset({"id", "key", "seq", "nonce", "n"})
_REGISTRATION = frozenset({"id", "seq", "left"})
_CANDIDATE = frozenset({"id"})
_REQUEST = frozenset({"kind"})


@dataclass(slots=True)
class StoreView:
    """The tier's part of the store as it is after some commits, decoded; garbage is left out."""

    revision: int = 0
    pods: dict[str, Record] = field(default_factory=dict)
    registrations: dict[str, Record] = field(default_factory=dict)
    candidates: dict[str, Record] = field(default_factory=dict)
    requests: dict[str, Record] = field(default_factory=dict)
    raw: dict[str, KeyValue] = field(default_factory=dict)  # all of the above, and all else

    def apply(self, entry: Entry) -> bool:
        """Apply what an entry says of the store; return whether it says anything."""
        match entry:
            case Commit(_, revision, changes):
                self.revision = revision
                for change in changes:
                    if change.type == "put":
                        self._put(change.kv)
                    else:
                        self._delete(change.kv.key)
            case Restore(_, _, revision, kvs):
                for key in list(self.raw):
                    self._delete(key)
                self.revision = revision
                for kv in kvs:
                    self._put(kv)
            case _:
                return False
        return True

    def _put(self, kv: KeyValue) -> None:
        self.raw[kv.key] = kv
        for prefix, records, needed in self._kinds():
            if kv.key.startswith(prefix):
                record = decode(kv.value)
                if record is not None and needed <= record.keys():
                    records[kv.key.removeprefix(prefix)] = record
                else:
                    records.pop(kv.key.removeprefix(prefix), None)

    def _delete(self, key: str) -> None:
        self.raw.pop(key, None)
        for prefix, records, _ in self._kinds():
            if key.startswith(prefix):
                records.pop(key.removeprefix(prefix), None)

    def _kinds(self) -> tuple[tuple[str, dict[str, Record], frozenset[str]], ...]:
        """Return the prefixes of records, where they are kept, and what each must have."""
        return (
            (KEYS.pods, self.pods, _POD),
            (KEYS.registrations, self.registrations, _REGISTRATION),
            (KEYS.candidates, self.candidates, _CANDIDATE),
            (KEYS.requests, self.requests, _REQUEST),
        )

    @property
    def running(self) -> Record | None:
        """The run that is not acknowledged; one that was withdrawn is none."""
        running = self._record(KEYS.running)
        return None if running is None or running.get("withdrawn") else running

    @property
    def applied(self) -> Record | None:
        return self._record(KEYS.applied)

    @property
    def state(self) -> bytes | None:
        kv = self.raw.get(KEYS.state)
        return None if kv is None else kv.value

    @property
    def leader(self) -> Record | None:
        """The oldest candidacy, of a leader once it has a `term`."""
        keys = sorted(self.candidates, key=lambda name: self.created(KEYS.candidates + name))
        return self.candidates[keys[0]] if keys else None

    def created(self, key: str) -> int:
        """Return the revision at which a key that is there came to be."""
        return self.raw[key].create_revision

    @property
    def listed(self) -> list[Record]:
        """The pods in order of `seq`, as a callback would see them."""
        pods = sorted(self.pods.values(), key=lambda pod: int(pod["seq"]))
        return [{name: pod[name] for name in pod if name != "n"} for pod in pods]

    def _record(self, key: str) -> Record | None:
        kv = self.raw.get(key)
        return None if kv is None else decode(kv.value)


def decode(raw: bytes) -> Record | None:
    """Return a record of the store, None if it is none."""
    try:
        found = json.loads(raw)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def puts(commit: Commit, prefix: str) -> Iterator[tuple[str, Record]]:
    """Yield (name, record) of each key below `prefix` that a commit wrote."""
    for change in commit.changes:
        if change.type == "put" and change.kv.key.startswith(prefix):
            record = decode(change.kv.value)
            if record is not None:
                yield change.kv.key.removeprefix(prefix), record


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
        if not isinstance(entry, Leased):
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
            text += "" if entry.again is None else f", again in {entry.again:g} s"
        case Acknowledged(at, sent):
            text = f"{entry.id} is #{entry.seq} (n {entry.n}, sent {at - sent:.3f} s ago)"
        case Deregistered():
            text = f"{entry.id} deregisters"
        case Process():
            text = f"{entry.node} {'starts' if entry.up else 'is gone'}"
            if entry.settings is not None:
                text += f": {entry.settings}"
            if entry.id and entry.id != entry.node:
                text += f" as {entry.id} at {entry.key}"
        case Failure():
            text = f"{entry.node}: {entry.why}"
        case Asked():
            text = f"{entry.node} is asked for a {entry.kind}"
        case Fault():
            text = f"{entry.what} {entry.a} {entry.b} {'on' if entry.on else 'off'}"
        case Restore(_, kind, revision):
            text = f"restored ({kind}) to revision {revision}"
        case Hook():
            text = f"hook {entry.name} of {entry.node}: {entry.what}"
        case Settled():
            text = f"settled: {entry.alive}"
        case _:
            text = str(entry)
    return text


def _change(change: Change) -> str:
    value = change.kv.value[:90].decode("utf-8", "replace")
    sign = "+" if change.type == "put" else "-"
    return f"{sign}{change.kv.key.removeprefix(KEYS.root)} {value}".rstrip()
