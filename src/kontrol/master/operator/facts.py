"""What a status is judged by, and what a judgement is."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from kontrol.ensemble.canonical import JSON
from kontrol.master.records.masters import Candidate
from kontrol.master.registry.quota import Limited
from kontrol.master.registry.rivals import Contest, Flip


@dataclass(frozen=True, slots=True)
class Facts:
    """What the judgement stands on; the fields are as in the status document.

    `etcd` is what is wrong with it, empty if nothing is; `alarms` are those that stand there, and
    `revision` is its own now. `candidates` are the masters that stand, the leader first. Durations
    are in seconds, None if there is none or it is not known: `silent` since the leader was heard
    (which `refuses` says of is not even listening),
    `waiting` since the oldest change for which no run began, `usual` of a run that ends well;
    `damper_max` is the most that the damper waits. `runs` are entries of the ledger, the newest
    first. `contests` and `flips` are the senders that compete for a seat, as this master sees them.
    `left_out` are the keys of pods' records that are none. `limited` are the bounds that keepalives
    met just now. `notices` are what other masters say of those who report to them.
    """

    etcd: str
    alarms: Sequence[str]
    revision: int
    leader: Mapping[str, JSON] | None
    candidates: Sequence[Candidate]
    plan: Mapping[str, JSON]
    running: Mapping[str, JSON] | None
    pods: int
    silent: float | None = None
    refuses: bool = False
    waiting: float | None = None
    usual: float | None = None
    damper_max: float = 60.0
    runs: Sequence[Mapping[str, JSON]] = ()
    now: datetime | None = None
    contests: Sequence[Contest] = ()
    flips: Sequence[Flip] = ()
    left_out: Collection[str] = ()
    limited: Sequence[Limited] = ()
    max_pods: int | None = None
    notices: Sequence["Problem"] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and what mends it; `kind` is for programs, see the documentation of REST."""

    what: str
    mend: str
    kind: str = "other"
