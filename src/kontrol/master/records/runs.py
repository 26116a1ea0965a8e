"""The records of runs, and their form in the store."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kontrol.ensemble.canonical import JSON, canonical
from kontrol.ensemble.desired import SpecChanges
from kontrol.ensemble.ensemble import Changes, Member, digest_of
from kontrol.ensemble.pod import KEY, safe_name
from kontrol.ensemble.urgent import MARK
from kontrol.master.records.fields import HIGHEST_RUN, MOST, Damaged, Fields, Record, read

_CHUNK = 512 * 1024  # bytes of pods in one key
_ENTRY = 4096  # bytes of a ledger entry that is written, or little more
_MAX_ENTRY = 64 * 1024  # bytes of one that is read
_MAX_STATE = 1024 * 1024  # bytes: twice what a callback may print; etcd accepts 1.5 MiB
_STATE_DEPTH = 200  # of arrays and objects within each other: likewise


@dataclass(frozen=True, slots=True)
class Running(Record):
    """A run that is not acknowledged. `ended` with `why` if it failed, else it may be under way.

    `reason` is why it was due, and `by` the operator that requested it, if any. `fover` is the
    fail-over time in seconds of the leader that wrote it, and `revision` the store's revision of
    the run's pods; None if unknown. `follows` is how many runs in a row before it seem to have led
    to the next. A run that is `withdrawn` was never started, and needs no other in its place.
    `spec` is the store's revision of the desired state that the run got, None if there was none.

    The defaults are what a damaged record stands for: a run of unknown number and term (0) that may
    be under way.
    """

    run: int = 0
    term: int = 0
    attempt: int = 1
    digest: str = ""
    fingerprint: str = ""
    started: str = ""
    ended: bool = False
    why: str = ""
    reason: str = ""
    by: str = ""
    fover: float | None = None
    revision: int | None = None
    follows: int = 0
    withdrawn: bool = False
    spec: int | None = None
    more: Mapping[str, JSON] = field(default_factory=dict)

    @classmethod
    def decode(cls, raw: bytes) -> "Running":
        """Read what `encode` wrote. Raises `Damaged`."""
        found = Fields.of(raw)
        return cls(
            run=found.number("run", least=1, most=HIGHEST_RUN),
            term=found.number("term", 0, most=2 * MOST),
            attempt=found.number("attempt", 1, least=1),
            digest=found.text("digest", ""),
            fingerprint=found.text("fingerprint", ""),
            started=found.text("started", ""),
            ended=found.flag("ended"),
            why=found.text("why", ""),
            reason=found.text("reason", ""),
            by=found.text("by", ""),
            fover=found.maybe_seconds("fover"),
            revision=found.maybe_number("revision"),
            follows=found.number("follows", 0),
            withdrawn=found.flag("withdrawn"),
            spec=found.maybe_number("spec"),
            more=found.more,
        )


@dataclass(frozen=True, slots=True)
class Head(Record):
    """The record of the last acknowledged run. Its pods, `pods` in number, are in chunks.

    Without a digest a run is due. Without a fingerprint it was for any callback. `ttl` is the one
    that was acknowledged to pods then, in seconds, and `revision` the store's revision of its pods;
    None if unknown. `again` is after how many seconds the callback asked to run again, and `note`
    its line for people; None without. `spec` has a mark of each value of the desired state that it
    got: see `Desired.marks`.
    """

    run: int
    digest: str = ""
    fingerprint: str | None = None
    pods: int | None = None
    ttl: float | None = None
    revision: int | None = None
    again: float | None = None
    note: str | None = None
    spec: Mapping[str, str] | None = None
    more: Mapping[str, JSON] = field(default_factory=dict)

    def shown(self) -> dict[str, JSON]:
        """Return what may be shown of it: not the marks, by which short secrets can be guessed."""
        return {name: value for name, value in self.known().items() if name != "spec"}

    @classmethod
    def decode(cls, raw: bytes) -> "Head":
        """Read what `encode` wrote. Raises `Damaged`."""
        found = Fields.of(raw)
        return cls(
            run=found.number("run", most=HIGHEST_RUN),
            digest=found.text("digest", ""),
            fingerprint=found.maybe_text("fingerprint"),
            pods=found.maybe_number("pods"),
            ttl=found.maybe_seconds("ttl"),
            revision=found.maybe_number("revision"),
            again=found.maybe_seconds("again"),
            note=found.maybe_text("note"),
            spec=_marks(found.more.pop("spec", None)),
            more=found.more,
        )


def _marks(value: JSON) -> Mapping[str, str] | None:
    """Read the marks of a desired state. What is none makes a run due, and that replaces it."""
    if not isinstance(value, dict):
        return None
    return {key: mark for key, mark in value.items() if isinstance(mark, str)}


@dataclass(frozen=True, slots=True)
class Applied:
    """The last acknowledged run, and the pods it was for; by default the empty ensemble.

    `ttl` is the one that was acknowledged to pods then, in seconds, and `revision` the store's
    revision of its pods; None if unknown. `again`, `note` and `spec` are as in `Head`.
    """

    run: int = 0
    digest: str = digest_of(())
    fingerprint: str | None = None
    members: tuple[Member, ...] = ()
    ttl: float | None = None
    revision: int | None = None
    again: float | None = None
    note: str | None = None
    spec: Mapping[str, str] | None = None

    @classmethod
    def of(cls, head: Head, members: tuple[Member, ...]) -> "Applied":
        """Return what a record and its pods say."""
        return cls(
            head.run,
            head.digest,
            head.fingerprint,
            members,
            head.ttl,
            head.revision,
            head.again,
            head.note,
            head.spec,
        )


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended, for its ledger entry. `seconds` is how long it took.

    `again` and `note` are what it left if it succeeded, as in `Head`. `published` is the version
    with the last document that it published, None if it published nothing new.
    """

    ok: bool
    why: str
    seconds: float = 0.0
    status: int | None = None
    signal: int | None = None
    stderr: str = ""
    again: float | None = None
    note: str | None = None
    published: int | None = None


def encode_members(members: Iterable[Member]) -> Iterable[bytes]:
    """Encode pods as arrays of at most `_CHUNK` bytes."""
    return encode_rows(
        [m.seq, m.key, m.id, m.ip, m.role, m.hash, *filter(None, [m.mark])] for m in members
    )


def encode_rows(members: Iterable[JSON]) -> Iterable[bytes]:
    """Encode the rows of pods as arrays of at most `_CHUNK` bytes."""
    rows: list[bytes] = []
    size = 0
    for member in members:
        row = canonical(member)
        if size + len(row) + 1 > _CHUNK:
            yield b"[" + b",".join(rows) + b"]"
            rows, size = [], 0
        rows.append(row)
        size += len(row) + 1
    yield b"[" + b",".join(rows) + b"]"


def decode_rows(raw: bytes) -> list[JSON]:
    """Read one of the arrays that `encode_members` wrote. Raises `Damaged`."""
    rows = read(raw)
    if not isinstance(rows, list):
        raise Damaged("the value", rows, "a list of pods")
    return rows


def member_of(row: JSON) -> Member:
    """Read one row: the first columns, whatever a later version adds. Raises `Damaged`.

    A former version accepted names that a callback must not see: they are made safe. The last
    column is there only if there is a mark.
    """
    columns = row[:6] if isinstance(row, list) else []
    match columns:
        case [int() as seq, str() as key, str() as id_, str() as ip, str() as role, str() as hash_]:
            if not isinstance(seq, bool) and 0 <= seq <= MOST:
                key = key if KEY.match(key) else safe_name(key)
                id_, ip, role = safe_name(id_), safe_name(ip), safe_name(role)
                return Member(seq, key, id_, ip, role, hash_, _mark(row))
    raise Damaged("a pod", row, "a number and five texts")


def _mark(row: JSON) -> str:
    mark = row[6] if isinstance(row, list) and len(row) > 6 else None
    return mark if isinstance(mark, str) and MARK.match(mark) else ""


def decode_entry(raw: bytes, number: int | None) -> dict[str, JSON]:
    """Read the ledger entry with `number` in its key. Raises `Damaged`."""
    if len(raw) > _MAX_ENTRY:
        raise Damaged("the value", f"{len(raw)} bytes", f"at most {_MAX_ENTRY}")
    value = read(raw)
    found = Fields(value)
    if found.number("run", most=HIGHEST_RUN) != number:
        raise Damaged("run", value, f"{number}, as its key says")
    found.maybe_number("term", most=2 * MOST)
    assert isinstance(value, dict)  # noqa: S101 - Fields took it
    return value


def decode_state(raw: bytes) -> bytes:
    """Return a state byte for byte. Raises `Damaged` if it is not JSON, or too large."""
    if len(raw) > _MAX_STATE:
        raise Damaged("the value", f"{len(raw)} bytes", f"at most {_MAX_STATE}")
    read(raw, depth=_STATE_DEPTH)
    return raw


def encode_entry(running: Running, pods: int, changes: Changes, ending: Ending) -> bytes:
    """Encode a run's ledger entry. Standard error and the lists of pods are cut to its size."""
    entry: dict[str, JSON] = {
        "run": running.run,
        "term": running.term,
        "attempt": running.attempt,
        "reason": running.reason,
        "by": running.by,
        "follows": running.follows,
        "digest": running.digest,
        "fingerprint": running.fingerprint,
        "started": running.started,
        "seconds": round(ending.seconds, 3),
        "ok": ending.ok,
        "why": ending.why[:512],
        "status": ending.status,
        "signal": ending.signal,
        "pods": pods,
        "changes": _some_changes(changes),
    }
    left: dict[str, JSON] = {
        "again": ending.again,
        "note": ending.note,
        "published": ending.published,
    }
    entry |= {name: value for name, value in left.items() if value is not None}
    stderr = ending.stderr
    while True:
        raw = canonical({**entry, "stderr": stderr})
        if len(raw) <= _ENTRY or not stderr:
            return raw
        stderr = stderr[max(1, len(raw) - _ENTRY) :]


def no_state(
    number: int, entry: Mapping[str, JSON] | None, kept: Sequence[int], *, last: int
) -> str:
    """Say why run `number` has no state to restore, and which runs have one.

    `entry` is its ledger entry, None if there is none. `kept` are the runs whose states are kept,
    in ascending order. `last` is the number of the last run.
    """
    if number > last:
        why = (
            f"there was no run {number}: the last one is run {last}" if last else "nothing ran yet"
        )
    elif entry is not None and entry.get("ok") is not True:
        why = f"run {number} failed, and a run that fails leaves no state"
    elif kept and number < kept[0]:
        why = f"the state of run {number} is no longer kept"
    elif entry is not None:
        why = f"run {number} has no state: the callback had not printed one yet"
    else:
        why = f"run {number} is not in the ledger, and has no state"
    if not kept:
        return f"{why}; no state is stored: the callback sets it by printing JSON"
    first, newest = kept[0], kept[-1]
    runs = f"run {first}" if first == newest else f"runs {first} to {newest}"
    return f"{why}; the states after {runs} can be restored, see `kontrol runs`"


def _some(rows: JSON) -> JSON:
    """Return the number of pods and the names of the first five."""
    names: list[JSON] = [f"#{row['seq']} {str(row['id'])[:64]}" for row in _dicts(rows)[:5]]
    return {"count": len(_dicts(rows)), "first": names}


def _some_changes(changes: Changes) -> JSON:
    some = {name: _some(rows) for name, rows in changes.of_pods().items()}
    return {**some, "spec": _some_keys(changes.spec)} if changes.spec else some


def _some_keys(spec: SpecChanges) -> JSON:
    """Return the number of keys, the first five, and which client changed each of these when."""
    changes = [*((one, "set") for one in spec.set), *((one, "unset") for one in spec.unset)]
    by: list[JSON] = [
        {"key": one.key, "did": did, "by": one.by[:64], "at": one.at[:32]}
        for one, did in changes[:5]
    ]
    return {"count": len(changes), "first": [one.key for one, _ in changes[:5]], "by": by}


def _dicts(rows: JSON) -> list[dict[str, JSON]]:
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
