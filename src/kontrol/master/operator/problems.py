"""What is wrong with a tier, in words, each with its mend: a pure judgement on its status."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kontrol.ensemble.canonical import JSON


@dataclass(frozen=True, slots=True)
class Facts:
    """What the judgement stands on; the fields are as in the status document.

    `etcd` is what is wrong with it, empty if nothing is; `candidates` are their ids, and
    `fingerprints` those of their callbacks, the leader's first.
    """

    etcd: str
    leader: Mapping[str, JSON] | None
    candidates: Sequence[str]
    fingerprints: Sequence[str]
    plan: Mapping[str, JSON]
    running: Mapping[str, JSON] | None
    pods: int


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and what mends it."""

    what: str
    mend: str


def problems(facts: Facts) -> list[Problem]:
    """Return what is wrong, the worst first."""
    found = []
    if facts.etcd:
        found.append(
            Problem(
                f"this master has no answer from etcd: {facts.etcd}",
                "see that etcd is up, has a quorum (`etcdctl endpoint status --cluster`) and room "
                "on its disk, and that this master reaches it; nothing runs meanwhile, and no pod "
                "is dropped",
            )
        )
    elif facts.leader is None:
        found.append(
            Problem(
                "no master leads",
                "a new leader takes up to KONTROL_FOVER; if none comes, see the masters' logs",
            )
        )
    elif facts.candidates[:1] and facts.candidates[0] in facts.candidates[1:]:
        found.append(
            Problem(
                f"{facts.candidates[0]} leads no more and stands again; nobody leads until its "
                "earlier lease has expired",
                "it takes up to KONTROL_FOVER; if no leader comes, see the masters' logs",
            )
        )
    elif "term" not in facts.leader:
        found.append(
            Problem(
                f"{facts.leader.get('id')} was elected and is not ready yet",
                "it is ready within seconds; if not, see its log",
            )
        )
    found += _of_the_callback(facts)
    if len(set(facts.fingerprints)) > 1:
        found.append(
            Problem(
                "the masters have different callbacks",
                "as during a deployment: the new one runs once no master has the former one, or "
                "60 s after the leader has it; if that lasts, deploy the same one to every master",
            )
        )
    if not facts.etcd and not facts.pods:
        found.append(
            Problem(
                "no pod reports",
                "see an agent's log, and that its annotation kontrol.unity3d.com/master names "
                "these masters",
            )
        )
    return found


def _of_the_callback(facts: Facts) -> list[Problem]:
    plan, running = facts.plan, facts.running
    found = []
    if plan.get("hold") in ("brake", "gap"):
        lost = plan.get("lost")
        many = len(lost) if isinstance(lost, list) else 0
        what = f"{'at least ' * (many == 20)}{many} of {plan.get('of')} pods are lost"
        mend = "wait for them; they have one TTL to come back"
        if plan.get("hold") == "brake":
            mend = "if they are gone for good: `kontrol release`; else see to their network or node"
        found.append(Problem(f"{what}, and the callback is held by the {plan.get('hold')}", mend))
    if running is not None and running.get("ended"):
        found.append(
            Problem(
                f"run {running.get('run')} failed (attempt {running.get('attempt')}): "
                f"{running.get('why')}",
                f"`kontrol explain {running.get('run')}` shows what it wrote; it is tried again",
            )
        )
    if facts.fingerprints and not facts.fingerprints[0]:
        found.append(
            Problem(
                "the leader has no callback: the ensemble is kept, and nothing is run",
                "set KONTROL_CALLBACK on every master",
            )
        )
    return found
