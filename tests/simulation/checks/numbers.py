"""Terms and numbers of runs, which are given once: also over a restore, if a witness leads after.

A *witness* is a master whose process had the store before the restore, and lives on. Until one of
those leads, no master can know which numbers were given after the snapshot was taken.
"""

from collections.abc import Iterator

from tests.simulation.health import Health
from tests.simulation.history import KEYS, Commit, Entry, Restore, decode, puts, written

WATCHED = 0.5  # seconds after which a watch has told what was written
SEEN = 5.0  # seconds with the store after which a master knows where it stands


class Numbers:
    """The highest term and run that were given; `complaints` says where one goes back."""

    def __init__(self) -> None:
        self.term = self.run = 0
        self._health = Health()
        self._since: dict[str, float] = {}  # from when a master has had the store
        self._seen: set[str] = set()  # masters whose present process has seen the store
        self._given, self._at = (0, 0), 0.0  # term and run, and when they were last given
        self._saw: dict[str, tuple[int, int]] = {}  # term and run when a master last had the store
        # Term and run that were given before a restore, as far as each witness has seen.
        self._witnesses: dict[str, tuple[int, int]] = {}
        self._leads: tuple[str, int, float] | None = None  # a witness, its term, and since when
        self._announced: dict[int, tuple[str, str]] = {}  # the candidacy and the master of a term

    def apply(self, entry: Entry) -> None:
        """Take in an entry."""
        if self._leads is not None:
            name, _, at = self._leads
            if name in self._since and entry.at - max(at, self._since[name]) > SEEN:
                # It could tell all others: from here on nothing that was given is given again.
                self.term = max(self.term, self._witnesses[name][0])
                self.run = max(self.run, self._witnesses[name][1])
        if (self.term, self.run) != self._given:
            self._given, self._at = (self.term, self.run), entry.at
        elif entry.at - self._at > WATCHED:
            followed = (m for m, since in self._since.items() if entry.at - since > SEEN)
            self._saw |= dict.fromkeys(followed, self._given)
        if self._health.apply(entry):
            self._look(entry.at)
        if isinstance(entry, Restore):
            for m in self._seen:
                (term, run), (saw_term, saw_run) = (
                    found.get(m, (0, 0)) for found in (self._witnesses, self._saw)
                )
                self._witnesses[m] = max(saw_term, term), max(saw_run, run)
            self._leads = None
            self.term, self.run = _given(entry)
        if isinstance(entry, Commit):
            for _, candidate in puts(entry, KEYS.candidates):
                if candidate.get("term", 0) > self.term:
                    name = str(candidate.get("id"))
                    known = name in self._witnesses
                    self._leads = (name, candidate["term"], entry.at) if known else None

    def _look(self, now: float) -> None:
        """See which masters have the store."""
        for m in self._health.settings:
            if self._health.since_start(m, now) == 0.0:
                self._seen.discard(m)
                self._witnesses.pop(m, None)
                self._saw.pop(m, None)
                if self._leads is not None and self._leads[0] == m:
                    self._leads = None
            if m in self._since and now - self._since[m] > SEEN:
                self._seen.add(m)
            if self._health.has_store(m):
                self._since.setdefault(m, now)
            else:
                self._since.pop(m, None)

    def complaints(self, commit: Commit) -> Iterator[str]:
        """Say which numbers a commit gives that were given."""
        at = commit.at
        for key, candidate in puts(commit, KEYS.candidates):
            told, name = candidate.get("term", 0), str(candidate.get("id"))
            seen, _ = self._witnesses.get(name, (0, 0))
            first = self._announced.setdefault(told, (key, name))
            if told and (told < seen or (told == seen and first != (key, name))):
                yield f"term {told} begins at {at:.3f} after term {seen}, restored"
            self.term = max(self.term, told)
        raw = written(commit, KEYS.running)
        running = None if raw is None else decode(raw)
        if running is not None and not running["ended"]:  # a successor writes how its end was found
            known = self._known(running["term"])
            if running["term"] < self.term:
                yield f"term {running['term']} begins a run at {at:.3f} after term {self.term}"
            if running["run"] <= known:
                yield f"run {running['run']} is recorded at {at:.3f} after run {known}"
        if running is not None:
            self.term = max(self.term, running["term"])
            self.run = max(self.run, running["run"])
        for _, run in puts(commit, KEYS.runs):
            if run.get("reason") == "rollback" and written(commit, KEYS.applied) is None:
                known = self._known(run["term"])
                if run["run"] <= known:
                    yield f"a rollback at {at:.3f} is run {run['run']}, after run {known}"
                self.run = max(self.run, run["run"])

    def _known(self, term: int) -> int:
        """Return the highest run that the leader of a term must know."""
        if self._leads is None or self._leads[1] != term:
            return self.run
        return max(self.run, self._witnesses[self._leads[0]][1])


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
