"""The records of runs, and how the store spells them."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from kontrol.ensemble.canonical import JSON, canonical
from kontrol.ensemble.difference import Changes, Member
from kontrol.ensemble.ensemble import digest_of

_CHUNK = 512 * 1024  # bytes of members in one key
_ENTRY = 4096  # bytes of a ledger entry


@dataclass(frozen=True, slots=True)
class Running:
    """A run that is not acknowledged. `ended` with `why` if it failed, else it may be under way.

    `reason` is why it was due; `by` is who asked for it, if somebody did.
    """

    run: int
    term: int
    attempt: int
    digest: str
    fingerprint: str
    started: str
    ended: bool = False
    why: str = ""
    reason: str = ""
    by: str = ""

    def encode(self) -> bytes:
        """Return the record as the store keeps it."""
        return canonical(asdict(self))


@dataclass(frozen=True, slots=True)
class Applied:
    """The last acknowledged run, and the pods it was for; by default the empty ensemble."""

    run: int = 0
    digest: str = digest_of(())
    fingerprint: str | None = None
    members: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended, for its entry."""

    ok: bool
    why: str
    seconds: float = 0.0
    status: int | None = None
    signal: int | None = None
    stderr: str = ""


def encode_members(members: Sequence[Member]) -> Iterable[bytes]:
    """Encode members in arrays of at most `_CHUNK` bytes."""
    rows: list[bytes] = []
    size = 0
    for m in members:
        row = canonical([m.seq, m.key, m.id, m.ip, m.role, m.hash])
        if size + len(row) + 1 > _CHUNK:
            yield b"[" + b",".join(rows) + b"]"
            rows, size = [], 0
        rows.append(row)
        size += len(row) + 1
    yield b"[" + b",".join(rows) + b"]"


def encode_entry(running: Running, pods: int, changes: Changes, ending: Ending) -> bytes:
    """Encode a run's entry; standard error and the lists of pods give way to the size."""
    entry: dict[str, JSON] = {
        "run": running.run,
        "term": running.term,
        "attempt": running.attempt,
        "reason": running.reason,
        "by": running.by,
        "digest": running.digest,
        "fingerprint": running.fingerprint,
        "started": running.started,
        "seconds": round(ending.seconds, 3),
        "ok": ending.ok,
        "why": ending.why[:512],
        "status": ending.status,
        "signal": ending.signal,
        "pods": pods,
        "changes": {name: _some(rows) for name, rows in changes.public().items()},
    }
    stderr = ending.stderr
    while True:
        raw = canonical({**entry, "stderr": stderr})
        if len(raw) <= _ENTRY or not stderr:
            return raw
        stderr = stderr[max(1, len(raw) - _ENTRY) :]


def _some(rows: JSON) -> JSON:
    """Keep the number of pods and the names of the first."""
    names: list[JSON] = [f"#{row['seq']} {str(row['id'])[:64]}" for row in _dicts(rows)[:5]]
    return {"count": len(_dicts(rows)), "first": names}


def _dicts(rows: JSON) -> list[dict[str, JSON]]:
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
