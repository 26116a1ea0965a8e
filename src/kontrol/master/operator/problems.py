"""The problems of a tier, in words, each with its fix. Pure.

What waits, is late or is lost counts as a problem. So a state that is normal for some seconds (a
leader that was just killed, lost pods that no run has been given yet) is a problem for as long.
Problems of senders (two that report for one registration, keepalives over a limit) are what this
master sees of them; `notices.py` has what other masters see.
"""

from collections.abc import Sequence

from kontrol.master.operator.late import of_the_callback
from kontrol.master.operator.story import Facts, Problem, reports
from kontrol.master.records.masters import Candidate
from kontrol.master.registry.conflicts import Conflict, Flip
from kontrol.master.registry.quota import Limited

_RECORDS = 5  # of those left out, named one by one
_SHOWN = 10  # pods that are named
_CONFLICTS = 5  # of each kind, described one by one
_ADDRESSES = 3  # of each limit, named one by one


def problems(facts: Facts) -> list[Problem]:
    """Return the problems, the worst first."""
    found = _of_the_alarms(facts)
    ids = [each.id for each in facts.candidates]
    if facts.etcd:
        found.append(
            Problem(
                f"etcd does not answer this master: {facts.etcd}",
                "check that etcd is up, has a quorum (`etcdctl endpoint status --cluster`) and "
                "disk space, and that this master can reach it; until then nothing runs, and no "
                "pod is dropped",
                kind="etcd-silent",
            )
        )
    elif facts.leader is None:
        found.append(
            Problem(
                "no master leads",
                "electing a leader takes up to KONTROL_FOVER; if no master leads after that, see "
                "the masters' logs"
                if "NOSPACE" not in facts.alarms
                else "first free etcd's space: no leader can be elected before",
                kind="no-leader",
            )
        )
    elif ids[:1] and ids[0] in ids[1:]:
        found.append(
            Problem(
                f"{ids[0]} restarted or lost its term, and campaigns again; no master leads until "
                "its earlier lease expires",
                "this takes up to KONTROL_FOVER; if no master leads after that, see the masters' "
                "logs",
                kind="no-leader",
            )
        )
    elif "term" not in facts.leader:
        found.append(
            Problem(
                f"{facts.leader.get('id')} was elected leader and is not ready yet",
                "it is ready within seconds; if not, see its log",
                kind="no-leader",
            )
        )
    elif not reports(facts.candidates[:1], silent=facts.silent, refuses=facts.refuses):
        found.append(_of_an_unresponsive_leader(facts))
    found += of_the_callback(facts)
    if len({each.fingerprint for each in facts.candidates}) > 1:
        found.append(
            Problem(
                "the masters have different callbacks",
                "this is normal during a deployment: the new callback runs once no master has the "
                "previous one, or 60 s after the leader has the new one; if it lasts, deploy the "
                "same callback to every master",
                kind="callbacks-differ",
            )
        )
    found += _of_a_full_tier(facts)
    found += of_the_senders(facts.conflicts, facts.flips, facts.limited)
    found += facts.notices
    found += _of_the_records(facts)
    found += _of_the_settings(facts.candidates)
    if not facts.etcd and not facts.pods:
        found.append(
            Problem(
                "no pod reports",
                "see an agent's log, and check that its annotation kontrol.unity3d.com/master "
                "names these masters",
                kind="no-pods",
            )
        )
    return found


def _of_the_alarms(facts: Facts) -> list[Problem]:
    found = []
    for alarm in facts.alarms:
        if alarm != "NOSPACE":
            what = f"etcd has raised the alarm {alarm}"
            fix = "find the member with `etcdctl alarm list`, and see etcd's documentation"
        else:
            what = (
                "etcd is full (alarm NOSPACE). Pods that report stay alive, and the leader leads; "
                "changes of pods, new pods, deregistrations, new masters and runs wait"
            )
            fix = free_space(facts.revision)
        found.append(Problem(what, fix, kind="etcd-alarm"))
    return found


def free_space(revision: int) -> str:
    """Return how to free the space of a full etcd whose revision is now `revision`."""
    return (
        f"delete its history, then end the alarm: `etcdctl compact {revision}`, "
        "`etcdctl defrag --cluster`, `etcdctl alarm disarm`; if `etcdctl endpoint status "
        "--cluster --write-out=table` then shows its size still near the quota, start etcd "
        "with a larger --quota-backend-bytes"
    )


def _of_the_settings(candidates: Sequence[Candidate]) -> list[Problem]:
    """Name the settings in which masters differ, as far as their versions publish them."""
    found = []
    same = "this is normal during a rolling restart; after that, give every master the same value"
    for name, published, rule in (
        ("KONTROL_TTL", [(c.id, c.ttl) for c in candidates], "the leader's rules"),
        ("KONTROL_DAMPER", [(c.id, c.damper) for c in candidates], "the leader's rules"),
        (
            "KONTROL_FOVER",
            [(c.id, c.fover) for c in candidates],
            "a leader is replaced after its own",
        ),
    ):
        known = {master: value for master, value in published if value is not None}
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
                "this is normal during an upgrade, by one minor version; finish the upgrade",
                kind="versions-differ",
            )
        )
    return found


def _of_a_full_tier(facts: Facts) -> list[Problem]:
    """Say that no new pod can join, even if none has tried it on this master."""
    if facts.max_pods is None or facts.pods < facts.max_pods:
        return []
    if any(each.name == "TooManyPods" for each in facts.limited):
        return []
    return [
        Problem(
            f"the tier has {facts.pods} pods, and KONTROL_MAX_PODS allows {facts.max_pods}: "
            "new ones are refused as TooManyPods",
            "remove pods that do not belong to this tier, or raise KONTROL_MAX_PODS on each master",
            kind="bound-reached",
        )
    ]


def _of_the_records(facts: Facts) -> list[Problem]:
    """Name the records that are left out of the ensemble."""
    if not facts.left_out:
        return []
    keys = ", ".join(f"{key!r:.70}" for key in sorted(facts.left_out)[:_RECORDS])
    more = "..." if len(facts.left_out) > _RECORDS else ""
    return [
        Problem(
            f"{len(facts.left_out)} records of pods in etcd cannot be read, or have names that no "
            f"callback may get, and are left out of the ensemble. Keys: {keys}{more}",
            "see the reason for each in this master's log; give the pod a name of letters, digits "
            "and . _ : / - (KONTROL_ID and its labels); a record that no pod reports expires with "
            "its lease",
            kind="records-left-out",
        )
    ]


def _of_an_unresponsive_leader(facts: Facts) -> Problem:
    leader, silent = facts.candidates[0], facts.silent or 0.0
    what = f"the leader {leader.id} has not reported for {silent:g} s: it ended, or hangs"
    if facts.refuses:
        what = f"the leader {leader.id} refuses connections at {leader.address}: it ended"
    within = "its KONTROL_FOVER" if leader.fover is None else f"{leader.fover:g} s"
    return Problem(
        what,
        f"another master leads once it has not reported for {within}, and nothing runs until "
        "then; see its log, and check that its host is up",
        kind="leader-silent",
    )


def of_the_senders(
    conflicts: Sequence[Conflict], flips: Sequence[Flip], limited: Sequence[Limited]
) -> list[Problem]:
    """Name the senders that report for one registration, and those that met a limit."""
    return _of_the_limits(limited) + _of_the_conflicts(conflicts, flips)


def of_the_published(version: int, pods: Sequence[tuple[str, int, str | None]]) -> list[Problem]:
    """Name pods that lack the present version: each with what it has, and what it says of that."""
    if not pods:
        return []
    shown = [
        f"{name} has {has or 'none'}" + (f" ({error})" if error else "")
        for name, has, error in sorted(pods, key=_by_name)[:_SHOWN]
    ]
    more = f" and {len(pods) - _SHOWN} more" if len(pods) > _SHOWN else ""
    return [
        Problem(
            f"{len(pods)} of the pods that follow what is published do not have version {version}: "
            f"{', '.join(shown)}{more}",
            "make the folder of KONTROL_PUBLISHED writable there, and free space; an agent tries "
            "again within 40 s. One that gives no reason is slow or does not run",
            kind="published-behind",
        )
    ]


def _by_name(pod: tuple[str, int, str | None]) -> tuple[str, int, str]:
    name, has, error = pod  # two processes may claim one name
    return name, has, error or ""


def _of_the_conflicts(conflicts: Sequence[Conflict], flips: Sequence[Flip]) -> list[Problem]:
    """Name both senders of each registration that two report for."""
    found = [
        Problem(
            f"two senders report for one registration. Refused as {each.name}, {each.times} times: "
            f"{each.refused}. Registered, and last seen {each.holder.seen:.0f} s before: "
            f"{each.holder}",
            "stop the one that should not report (with keys, remove the key that it uses from the "
            "masters' folder); the other one is then accepted within KONTROL_TTL, or immediately "
            f"after `kontrol forget {each.holder.key}`",
            kind="two-senders",
        )
        for each in conflicts[:_CONFLICTS]
    ]
    found += [
        Problem(
            f"the record of pod {each.last.id} changed back and forth {each.times} times, and the "
            f"ensemble with it: {each.last}; {each.before}",
            "two processes report under one id, or one reports to this tier under two names: stop "
            "one, or name the tier once",
            kind="two-senders",
        )
        for each in flips[:_CONFLICTS]
    ]
    more = len(conflicts) + len(flips) - len(found)
    if more:
        what = f"{more} more registrations have two senders"
        found.append(Problem(what, "see the masters' logs", kind="two-senders"))
    return found


def _of_the_limits(limited: Sequence[Limited]) -> list[Problem]:
    """Name the limits for which pods are refused."""
    found = []
    for each in limited:
        by = ", ".join(f"{address or '?'} ({n})" for address, n in each.by.most_common(_ADDRESSES))
        found.append(
            Problem(
                f"pods are refused as {each.name}, {each.times} times so far, from {by}. The last: "
                f"{each.why}",
                "if these pods are yours, raise the setting; if not, block that address, and "
                "give the tier keys (`kontrol keys`), so that unknown clients cannot report",
                kind="bound-reached",
            )
        )
    return found
