"""What is wrong with a tier, in words, each with its mend: a pure judgement on its status."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from kontrol.ensemble.canonical import JSON
from kontrol.master.records.masters import Candidate
from kontrol.master.registry.rivals import Contest, Flip

_RIVALS = 5  # of each kind, that are told one by one
_RECORDS = 5  # likewise


@dataclass(frozen=True, slots=True)
class Facts:
    """What the judgement stands on; the fields are as in the status document.

    `etcd` is what is wrong with it, empty if nothing is; `alarms` are those that stand there, and
    `revision` is its own now. `candidates` are the masters that stand, the leader first. `contests`
    and `flips` are the senders that compete for a seat, as this master sees them. `left_out` are
    the keys of pods' records that are none.
    """

    etcd: str
    alarms: Sequence[str]
    revision: int
    leader: Mapping[str, JSON] | None
    candidates: Sequence[Candidate]
    plan: Mapping[str, JSON]
    running: Mapping[str, JSON] | None
    pods: int
    contests: Sequence[Contest] = ()
    flips: Sequence[Flip] = ()
    left_out: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and what mends it."""

    what: str
    mend: str


def problems(facts: Facts) -> list[Problem]:
    """Return what is wrong, the worst first."""
    found = _of_the_alarms(facts)
    ids = [each.id for each in facts.candidates]
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
    elif ids[:1] and ids[0] in ids[1:]:
        found.append(
            Problem(
                f"{ids[0]} leads no more and stands again; nobody leads until its "
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
    if len({each.fingerprint for each in facts.candidates}) > 1:
        found.append(
            Problem(
                "the masters have different callbacks",
                "as during a deployment: the new one runs once no master has the former one, or "
                "60 s after the leader has it; if that lasts, deploy the same one to every master",
            )
        )
    found += _of_the_rivals(facts)
    found += _of_the_records(facts)
    found += _of_the_settings(facts.candidates)
    if not facts.etcd and not facts.pods:
        found.append(
            Problem(
                "no pod reports",
                "see an agent's log, and that its annotation kontrol.unity3d.com/master names "
                "these masters",
            )
        )
    return found


def _of_the_alarms(facts: Facts) -> list[Problem]:
    found = []
    for alarm in facts.alarms:
        if alarm != "NOSPACE":
            what = f"etcd has raised the alarm {alarm}"
            mend = "`etcdctl alarm list` names the member; see etcd's documentation on that alarm"
        else:
            what = (
                "etcd is full (alarm NOSPACE). Pods that report stay alive, and the leader leads; "
                "what pods change, new pods, deregistrations, new masters and runs wait"
            )
            mend = (
                f"free its history, then end the alarm: `etcdctl compact {facts.revision}`, "
                "`etcdctl defrag --cluster`, `etcdctl alarm disarm`; if `etcdctl endpoint status "
                "--cluster --write-out=table` then shows its size still near the quota, start etcd "
                "with a larger --quota-backend-bytes"
            )
        found.append(Problem(what, mend))
    return found


def _of_the_settings(candidates: Sequence[Candidate]) -> list[Problem]:
    """Name the settings in which masters differ; earlier versions may not tell theirs."""
    found = []
    same = "as it is during a rolling restart; after that, give every master the same value"
    for name, told, rule in (
        ("KONTROL_TTL", [(c.id, c.ttl) for c in candidates], "the leader's rules"),
        ("KONTROL_DAMPER", [(c.id, c.damper) for c in candidates], "the leader's rules"),
        (
            "KONTROL_FOVER",
            [(c.id, c.fover) for c in candidates],
            "a leader is replaced after its own",
        ),
    ):
        known = {master: value for master, value in told if value is not None}
        if len(set(known.values())) > 1:
            values = ", ".join(f"{master} has {value:g} s" for master, value in known.items())
            found.append(Problem(f"the masters have different {name}: {values}; {rule}", same))
    versions = {each.id: each.version or "an unknown version" for each in candidates}
    if len(set(versions.values())) > 1:
        values = ", ".join(f"{master} runs {version}" for master, version in versions.items())
        found.append(
            Problem(
                f"the masters are of different versions: {values}",
                "as it is during an upgrade, by one minor version; finish it",
            )
        )
    return found


def _of_the_rivals(facts: Facts) -> list[Problem]:
    """Name both senders of each seat that two compete for."""
    found = [
        Problem(
            f"two senders compete for one seat. Refused as {each.name}, {each.times} times: "
            f"{each.refused}. It has the seat, and was heard {each.holder.heard:.0f} s before: "
            f"{each.holder}",
            "stop the one that should not report (with keys, take the key that it uses from the "
            "masters' folder); the other one is then taken within KONTROL_TTL, or at once after "
            f"`kontrol forget {each.holder.key}`",
        )
        for each in facts.contests[:_RIVALS]
    ]
    found += [
        Problem(
            f"the record of pod {each.last.id} changed to and fro {each.times} times, and the "
            f"ensemble with it: {each.last}; {each.before}",
            "two processes report under one id, or one reports to this tier under two names: stop "
            "one, or name the tier once",
        )
        for each in facts.flips[:_RIVALS]
    ]
    more = len(facts.contests) + len(facts.flips) - len(found)
    if more:
        found.append(Problem(f"{more} more seats have two senders", "see the masters' logs"))
    return found


def _of_the_records(facts: Facts) -> list[Problem]:
    """Name records that are left out of the ensemble."""
    if not facts.left_out:
        return []
    keys = ", ".join(f"{key!r:.70}" for key in sorted(facts.left_out)[:_RECORDS])
    more = "..." if len(facts.left_out) > _RECORDS else ""
    return [
        Problem(
            f"{len(facts.left_out)} records of pods in etcd cannot be read, or have names that a "
            f"callback must not see, and are left out of the ensemble. Keys: {keys}{more}",
            "this master's log says for each what is wrong; give the pod a name of letters, digits "
            "and . _ : / - (KONTROL_ID and its labels); a record that nobody reports expires with "
            "its lease",
        )
    ]


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
    if facts.candidates and not facts.candidates[0].fingerprint:
        found.append(
            Problem(
                "the leader has no callback: the ensemble is kept, and nothing is run",
                "set KONTROL_CALLBACK on every master",
            )
        )
    return found
