"""The keys of the store: every one that a tier of masters reads or writes."""

import re
from dataclasses import dataclass

SCHEMA = 1  # the version of this layout, stored in `meta`

_NUMBERED = re.compile(r"/([0-9]{12})\Z")


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys below `/kontrol/<namespace>/<app>/`, the namespace and app of the masters."""

    root: str

    @classmethod
    def of(cls, namespace: str, app: str) -> "Keys":
        """Return the keys of a tier. Raises `ValueError` if a part is empty or has a slash."""
        for name, part in (("namespace", namespace), ("app", app)):
            if not part or "/" in part:
                raise ValueError(f"{name} is {part!r}; expected a name without slashes")
        return cls(f"/kontrol/{namespace}/{app}/")

    @property
    def pods(self) -> str:
        """Prefix of the records of live pods, each under its own lease."""
        return f"{self.root}pods/"

    @property
    def live(self) -> str:
        """Prefix of the pods' live facts, each under its pod's lease."""
        return f"{self.root}live/"

    @property
    def registrations(self) -> str:
        """Prefix of the registrations: the numbers and tombstones that outlive a pod's lease."""
        return f"{self.root}seqs/"

    @property
    def counter(self) -> str:
        """The next sequence number."""
        return f"{self.root}seq"

    @property
    def candidates(self) -> str:
        """Prefix of the candidacies; the oldest leads."""
        return f"{self.root}leader/"

    @property
    def running(self) -> str:
        """The run that was started and is not acknowledged."""
        return f"{self.root}running"

    @property
    def last_run(self) -> str:
        """The number of the last run that was started, or of a later rollback."""
        return f"{self.root}last-run"

    @property
    def last_acknowledged(self) -> str:
        """The number of the last acknowledged run; masters watch it together with `last_run`."""
        return f"{self.last_run}/acknowledged"

    @property
    def state(self) -> str:
        """The state that the callback last returned."""
        return f"{self.root}state"

    @property
    def spec(self) -> str:
        """The desired state, which operators set."""
        return f"{self.root}spec"

    @property
    def applied(self) -> str:
        """The last acknowledged run."""
        return f"{self.root}applied"

    @property
    def states(self) -> str:
        """Prefix of the states of the last runs."""
        return f"{self.root}states/"

    @property
    def runs(self) -> str:
        """Prefix of the ledger."""
        return f"{self.root}runs/"

    @property
    def requests(self) -> str:
        """Prefix of operators' requests to the leader, each under its own lease."""
        return f"{self.root}requests/"

    @property
    def plan(self) -> str:
        """What the leader is about to do, under its lease."""
        return f"{self.root}plan"

    @property
    def notices(self) -> str:
        """Prefix of the masters' notices about senders, each under its own lease."""
        return f"{self.root}notices/"

    def notice(self, lease: int) -> str:
        """The notice of the master with this lease."""
        return f"{self.notices}{lease:016x}"

    @property
    def published(self) -> str:
        """What is published to agents: all documents, and their version."""
        return f"{self.root}published"

    @property
    def ages(self) -> str:
        """The time that masters have watched, by which unused registrations age."""
        return f"{self.root}ages"

    @property
    def meta(self) -> str:
        """The version of this layout, and the floor of terms."""
        return f"{self.root}meta"

    def pod(self, key: str) -> str:
        """The live record of the pod with this key."""
        return self.pods + key

    def live_facts(self, key: str) -> str:
        """The live facts of the pod with this key."""
        return self.live + key

    def registration(self, key: str) -> str:
        """The registration of the last identity that used this key."""
        return self.registrations + key

    def archived_registration(self, key: str, seq: int) -> str:
        """The tombstone of an identity whose key another one uses now; keys have no dot."""
        return f"{self.registrations}{key}.{seq}"

    def candidate(self, lease: int) -> str:
        """The candidacy under this lease."""
        return f"{self.candidates}{lease:016x}"

    def run(self, number: int) -> str:
        """A run's entry in the ledger; padded, so that keys are in the order of runs."""
        return f"{self.runs}{number:012d}"

    def state_of(self, number: int) -> str:
        """The state after a run."""
        return f"{self.states}{number:012d}"

    def members(self, number: int) -> str:
        """Prefix of the chunks that list the pods of an acknowledged run."""
        return f"{self.applied}/{number:012d}/"

    @staticmethod
    def number(key: str) -> int | None:
        """Return the run number at the end of a key, None if there is none."""
        found = _NUMBERED.search(key)
        return int(found[1]) if found else None
