"""Terms and numbers of runs, which are given once: also over a restore, if a witness leads after.

A *witness* is a master whose process had the store before the restore, and lives on. Until one of
those leads, nobody can know which numbers were given after the snapshot was taken.
"""

from collections.abc import Iterator

from tests.simulation.health import Health
from tests.simulation.history import KEYS, Commit, Entry, Restore, decode, puts, written

SEEN = 5.0  # seconds with the store after which a master knows where it stands


class Numbers:
    """The highest term and run that were given; `complaints` says where one goes back."""

    def __init__(self) -> None:
        self.term = self.run = 0
        self._health = Health()
        self._since: dict[str, float] = {}  # from when a master has had the store
        self._seen: set[str] = set()  # masters whose present process has seen the store
        self._witnesses: set[str] = set()
        self._owed = (0, 0)  # term and run that were given before the last restore

    def apply(self, entry: Entry) -> None:
        """Take in an entry."""
        if self._health.apply(entry):
            masters = self._health.settings
            for m in masters:
                if self._health.since_start(m, entry.at) == 0.0:
                    self._seen.discard(m)
                    self._witnesses.discard(m)
                if m in self._since and entry.at - self._since[m] > SEEN:
                    self._seen.add(m)
                if self._health.has_store(m):
                    self._since.setdefault(m, entry.at)
                else:
                    self._since.pop(m, None)
        if isinstance(entry, Restore):
            self._witnesses = set(self._seen)
            self._owed = max(self.term, self._owed[0]), max(self.run, self._owed[1])
            self.term, self.run = _given(entry)
        if isinstance(entry, Commit):
            for _, candidate in puts(entry, KEYS.candidates):
                if "term" in candidate and candidate.get("id") in self._witnesses:
                    # It knows: from here on nothing that was given is given again.
                    self.run = max(self.run, self._owed[1])
                    if candidate["term"] > self._owed[0]:
                        self.term = max(self.term, self._owed[0])

    def complaints(self, commit: Commit) -> Iterator[str]:
        """Say which numbers a commit gives that were given."""
        at = commit.at
        for _, candidate in puts(commit, KEYS.candidates):
            told = candidate.get("term", 0)
            if told and candidate.get("id") in self._witnesses and told < self._owed[0]:
                yield f"term {told} begins at {at:.3f} after term {self._owed[0]}, restored"
            self.term = max(self.term, told)
        raw = written(commit, KEYS.running)
        running = None if raw is None else decode(raw)
        if running is not None and not running["ended"]:  # a successor writes how its end was found
            if running["term"] < self.term:
                yield f"term {running['term']} begins a run at {at:.3f} after term {self.term}"
            if running["run"] <= self.run:
                yield f"run {running['run']} is booked at {at:.3f} after run {self.run}"
        if running is not None:
            self.term = max(self.term, running["term"])
            self.run = max(self.run, running["run"])
        for _, run in puts(commit, KEYS.runs):
            if run.get("reason") == "rollback" and written(commit, KEYS.applied) is None:
                if run["run"] <= self.run:
                    yield f"a rollback at {at:.3f} is run {run['run']}, after run {self.run}"
                self.run = max(self.run, run["run"])


def _given(restore: Restore) -> tuple[int, int]:
    """Return the highest term and run that a snapshot tells of."""
    term = run = 0
    for kv in restore.kvs:
        record = decode(kv.value)
        if record is None:
            continue
        if kv.key.startswith(KEYS.candidates):
            term = max(term, record.get("term", 0))
        elif kv.key.startswith((KEYS.runs, KEYS.running, KEYS.applied)) and "run" in record:
            term, run = max(term, record.get("term", 0)), max(run, record["run"])
    return term, run
