"""What is wrong with a tier, in words, each with its mend: a pure judgement on its status.

Nothing is well that waits, is late or is lost. So what is normal for some seconds (a leader that
was just killed, lost pods that the callback was not told of yet) is a problem for as long.
"""

from collections.abc import Sequence

from kontrol.master.operator.facts import Facts, Problem
from kontrol.master.operator.late import of_the_callback
from kontrol.master.operator.senders import of_the_senders
from kontrol.master.records.masters import Candidate

_RECORDS = 5  # that are told one by one

# Seconds. A leader is heard twice a second, and what is known of it is rounded up by one second.
_SILENT = 3.0


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
                kind="etcd-silent",
            )
        )
    elif facts.leader is None:
        found.append(
            Problem(
                "no master leads",
                "a new leader takes up to KONTROL_FOVER; if none comes, see the masters' logs",
                kind="no-leader",
            )
        )
    elif ids[:1] and ids[0] in ids[1:]:
        found.append(
            Problem(
                f"{ids[0]} leads no more and stands again; nobody leads until its "
                "earlier lease has expired",
                "it takes up to KONTROL_FOVER; if no leader comes, see the masters' logs",
                kind="no-leader",
            )
        )
    elif "term" not in facts.leader:
        found.append(
            Problem(
                f"{facts.leader.get('id')} was elected and is not ready yet",
                "it is ready within seconds; if not, see its log",
                kind="no-leader",
            )
        )
    elif facts.refuses or (facts.silent is not None and facts.silent >= _SILENT):
        found.append(_of_a_silent_leader(facts))
    found += of_the_callback(facts)
    if len({each.fingerprint for each in facts.candidates}) > 1:
        found.append(
            Problem(
                "the masters have different callbacks",
                "as during a deployment: the new one runs once no master has the former one, or "
                "60 s after the leader has it; if that lasts, deploy the same one to every master",
                kind="callbacks-differ",
            )
        )
    found += _of_a_full_tier(facts)
    found += of_the_senders(facts.contests, facts.flips, facts.limited)
    found += facts.notices
    found += _of_the_records(facts)
    found += _of_the_settings(facts.candidates)
    if not facts.etcd and not facts.pods:
        found.append(
            Problem(
                "no pod reports",
                "see an agent's log, and that its annotation kontrol.unity3d.com/master names "
                "these masters",
                kind="no-pods",
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
        found.append(Problem(what, mend, kind="etcd-alarm"))
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
            found.append(
                Problem(
                    f"the masters have different {name}: {values}; {rule}",
                    same,
                    kind="settings-differ",
                )
            )
    versions = {each.id: each.version or "an unknown version" for each in candidates}
    if len(set(versions.values())) > 1:
        values = ", ".join(f"{master} runs {version}" for master, version in versions.items())
        found.append(
            Problem(
                f"the masters are of different versions: {values}",
                "as it is during an upgrade, by one minor version; finish it",
                kind="versions-differ",
            )
        )
    return found


def _of_a_full_tier(facts: Facts) -> list[Problem]:
    """Say that no new pod can join, though none may have asked this master."""
    if facts.max_pods is None or facts.pods < facts.max_pods:
        return []
    if any(each.name == "TooManyPods" for each in facts.limited):
        return []
    return [
        Problem(
            f"the tier has {facts.pods} pods, and KONTROL_MAX_PODS allows {facts.max_pods}: "
            "new ones are refused as TooManyPods",
            "remove pods that do not belong here, or raise KONTROL_MAX_PODS on every master",
            kind="bound-reached",
        )
    ]


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
            kind="records-left-out",
        )
    ]


def _of_a_silent_leader(facts: Facts) -> Problem:
    leader, silent = facts.candidates[0], facts.silent or 0.0
    what = f"the leader {leader.id} was not heard for {silent:g} s: it ended, or hangs"
    if facts.refuses:
        what = f"the leader {leader.id} takes no connections at {leader.address}: it ended"
    within = "its KONTROL_FOVER" if leader.fover is None else f"{leader.fover:g} s"
    return Problem(
        what,
        f"another master leads once it has been silent for {within}, and nothing runs until then; "
        "see its log, and whether its host is up",
        kind="leader-silent",
    )
