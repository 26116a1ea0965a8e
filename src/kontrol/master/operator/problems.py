"""What is wrong with a tier, in words, each with its fix: a pure judgement on its status.

Nothing is well that waits, is late or is lost. So what is normal for some seconds (a leader that
was just killed, lost pods that the callback was not told of yet) is a problem for as long.

What one master sees of those who report to it: pure judgements, in words.
"""

from collections.abc import Sequence

from kontrol.master.operator.late import of_the_callback
from kontrol.master.operator.story import Facts, Problem, reports
from kontrol.master.records.masters import Candidate
from kontrol.master.registry.conflicts import Conflict, Flip
from kontrol.master.registry.quota import Limited

_RECORDS = 5  # that are told one by one


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
                "a new leader takes up to KONTROL_FOVER; if none comes, see the masters' logs"
                if "NOSPACE" not in facts.alarms
                else "etcd must have space again first: none can be elected before",
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
    elif not reports(facts.candidates[:1], silent=facts.silent, refuses=facts.refuses):
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
            fix = "`etcdctl alarm list` names the member; see etcd's documentation on that alarm"
        else:
            what = (
                "etcd is full (alarm NOSPACE). Pods that report stay alive, and the leader leads; "
                "what pods change, new pods, deregistrations, new masters and runs wait"
            )
            fix = free_space(facts.revision)
        found.append(Problem(what, fix, kind="etcd-alarm"))
    return found


def free_space(revision: int) -> str:
    """Return the commands that free the space of an etcd whose revision is now this."""
    return (
        f"free its history, then end the alarm: `etcdctl compact {revision}`, "
        "`etcdctl defrag --cluster`, `etcdctl alarm disarm`; if `etcdctl endpoint status "
        "--cluster --write-out=table` then shows its size still near the quota, start etcd "
        "with a larger --quota-backend-bytes"
    )


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


_RIVALS = 5  # of each kind, that are told one by one
_ADDRESSES = 3  # likewise


def of_the_senders(
    contests: Sequence[Conflict], flips: Sequence[Flip], limited: Sequence[Limited]
) -> list[Problem]:
    """Name the senders that compete for a seat, and those that met a bound."""
    return _of_the_bounds(limited) + _of_the_rivals(contests, flips)


def _of_the_rivals(contests: Sequence[Conflict], flips: Sequence[Flip]) -> list[Problem]:
    """Name both senders of each seat that two compete for."""
    found = [
        Problem(
            f"two senders compete for one seat. Refused as {each.name}, {each.times} times: "
            f"{each.refused}. It has the seat, and was heard {each.holder.seen:.0f} s before: "
            f"{each.holder}",
            "stop the one that should not report (with keys, take the key that it uses from the "
            "masters' folder); the other one is then taken within KONTROL_TTL, or at once after "
            f"`kontrol forget {each.holder.key}`",
            kind="two-senders",
        )
        for each in contests[:_RIVALS]
    ]
    found += [
        Problem(
            f"the record of pod {each.last.id} changed to and fro {each.times} times, and the "
            f"ensemble with it: {each.last}; {each.before}",
            "two processes report under one id, or one reports to this tier under two names: stop "
            "one, or name the tier once",
            kind="two-senders",
        )
        for each in flips[:_RIVALS]
    ]
    more = len(contests) + len(flips) - len(found)
    if more:
        what = f"{more} more seats have two senders"
        found.append(Problem(what, "see the masters' logs", kind="two-senders"))
    return found


def _of_the_bounds(limited: Sequence[Limited]) -> list[Problem]:
    """Name the bounds that pods are refused for."""
    found = []
    for each in limited:
        by = ", ".join(f"{who or '?'} ({n})" for who, n in each.by.most_common(_ADDRESSES))
        found.append(
            Problem(
                f"pods are refused as {each.name}, {each.times} times so far, from {by}. The last: "
                f"{each.why}",
                "if these pods are yours, raise the setting; if not, keep that address out, and "
                "give the tier keys (`kontrol keys`), so that strangers can report nothing",
                kind="bound-reached",
            )
        )
    return found
