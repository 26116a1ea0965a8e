"""The metrics of a master, read from its parts on request."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeAlias, get_args

from kontrol.ensemble.canonical import JSON
from kontrol.master.leader import policy
from kontrol.master.master import Master
from kontrol.metrics import Metric, Values

_Rows: TypeAlias = "Iterable[tuple[Values, float]]"

_ROLES = 100  # with a row each; agents name them, and could name many
_OTHERS = "(others)"  # one row, even if an agent names its role so


def _pods(master: Master) -> _Rows:
    roles = Counter(pod.role for pod in master.mirror.ensemble)
    shown = {role: count for role, count in roles.most_common(_ROLES) if role != _OTHERS}
    rest = roles.total() - sum(shown.values())
    return [((role,), count) for role, count in [*shown.items(), *[(_OTHERS, rest)] * bool(rest)]]


def _age(master: Master) -> float | None:
    age = master.mirror.cache.age
    return None if age == float("inf") else age


def _term(master: Master) -> float | None:
    record: dict[str, JSON] | None = master.leader_record
    term = None if record is None else record.get("term")
    return term if isinstance(term, int) else None


def _receivers(master: Master) -> _Rows:
    version = master.publications.current.version
    has = Counter(each.version >= version for each in master.publications.receivers())
    return [(("latest",), has[True]), (("behind",), has[False])]


def _plan(master: Master) -> policy.Idle | policy.Wait | policy.Run:
    """Return what this master is about to do, as leader."""
    return master.leader.plan


def _due(master: Master) -> _Rows:
    plan = _plan(master)
    reason = None if isinstance(plan, policy.Idle) else plan.reason
    return [((name,), int(name == reason)) for name in get_args(policy.Reason)]


def _held(master: Master) -> _Rows:
    plan = _plan(master)
    hold = plan.hold if isinstance(plan, policy.Wait) else None
    return [((name,), int(name == hold)) for name in get_args(policy.Hold)]


def _held_for(master: Master) -> float | None:
    plan = _plan(master)
    return _left(plan.until) if isinstance(plan, policy.Wait) else None


def _next(master: Master) -> float | None:
    plan = _plan(master)
    return _left(plan.until) if isinstance(plan, policy.Idle) else None


def _left(until: float | None) -> float | None:
    """Return the seconds until a time of the loop, None if there is none."""
    return None if until is None else max(0.0, until - asyncio.get_running_loop().time())


def _since(read: Callable[[Master], float | None]) -> Callable[[Master], float | None]:
    """Return the seconds since a time of the loop, None if there is none."""

    def age(master: Master) -> float | None:
        time = read(master)
        return None if time is None else max(0.0, asyncio.get_running_loop().time() - time)

    return age


def _moment(read: Callable[[Master], float]) -> Callable[[Master], float | None]:
    """Return a time in seconds since 1970, None before there is one."""
    return lambda master: read(master) or None


METRICS: tuple[Metric[Master], ...] = (
    Metric(
        "kontrol_master_pods",
        "gauge",
        "Live pods by role, as this master's mirror has them; the rarest of over 100 roles are "
        "counted as `(others)`.",
        _pods,
        ("role",),
    ),
    Metric(
        "kontrol_master_record_bytes",
        "gauge",
        "Bytes of the records of all pods, as this master's mirror has them: see "
        "`KONTROL_MAX_BYTES`.",
        lambda m: m.mirror.size,
    ),
    Metric(
        "kontrol_master_bound_refusals_total",
        "counter",
        "Keepalives refused by this master because of `KONTROL_MAX_PODS` (`TooManyPods`), "
        "`KONTROL_MAX_BYTES` or `KONTROL_MAX_JOINS`.",
        lambda m: [((name,), count) for name, count in sorted(m.registry.quota.refused.items())],
        ("outcome",),
    ),
    Metric(
        "kontrol_master_keepalives_total",
        "counter",
        "Keepalives handled by this master: `refreshed` was unchanged, `written` was a change; any "
        "other outcome is the name of a refusal.",
        lambda m: [((name,), count) for name, count in sorted(m.registry.outcomes.items())],
        ("outcome",),
    ),
    Metric(
        "kontrol_master_keepalives_waiting",
        "gauge",
        "Keepalives waiting to be written.",
        lambda m: len(m.registry.queue),
    ),
    Metric(
        "kontrol_master_batch_seconds",
        "summary",
        "Time to write a batch of keepalives.",
        lambda m: (m.registry.writer.batches, m.registry.writer.seconds),
    ),
    Metric(
        "kontrol_master_batch_keepalives_total",
        "counter",
        "Keepalives in those batches.",
        lambda m: m.registry.writer.batched,
    ),
    Metric(
        "kontrol_master_mirror_age_seconds",
        "gauge",
        "Seconds since etcd confirmed that the mirror is complete; absent before the first time.",
        _age,
    ),
    Metric(
        "kontrol_master_mirror_current",
        "gauge",
        "1 if it was confirmed within a third of the TTL: keepalives are then decided on it.",
        lambda m: int(m.mirror.cache.current),
    ),
    Metric(
        "kontrol_master_mirror_revision",
        "gauge",
        "etcd's revision of the last change in the mirror.",
        lambda m: m.mirror.cache.revision,
    ),
    Metric(
        "kontrol_master_store_restores_total",
        "counter",
        "How often etcd was found restored: to an earlier revision, or as another cluster.",
        lambda m: m.mirror.cache.restores,
    ),
    Metric(
        "kontrol_master_candidates",
        "gauge",
        "Masters that campaign for leader, including the leader.",
        lambda m: len(m.election.candidates),
    ),
    Metric(
        "kontrol_master_leader",
        "gauge",
        "1 if this master leads.",
        lambda m: int(m.election.term is not None),
    ),
    Metric(
        "kontrol_master_term",
        "gauge",
        "The current leader's term; absent while no master leads.",
        _term,
    ),
    Metric(
        "kontrol_master_elections_won_total",
        "counter",
        "Elections that this master has won.",
        lambda m: m.counts.terms,
    ),
    Metric(
        "kontrol_leader_proofs_total",
        "counter",
        "How often etcd confirmed that this master leads.",
        lambda m: m.election.proofs,
    ),
    Metric(
        "kontrol_leader_proof_margin_seconds",
        "gauge",
        "Seconds until the last such confirmation expires and this master stops acting as leader; "
        "absent if it does not lead.",
        lambda m: m.election.margin,
    ),
    Metric(
        "kontrol_leader_runs_started_total",
        "counter",
        "Runs of the callback that this master started.",
        lambda m: m.counts.runs_started,
    ),
    Metric(
        "kontrol_leader_runs_total",
        "counter",
        "Runs that ended, `acknowledged` or `failed`.",
        lambda m: [
            (("acknowledged",), m.counts.runs_acknowledged),
            (("failed",), m.counts.runs_failed),
        ],
        ("outcome",),
    ),
    Metric(
        "kontrol_leader_run_seconds",
        "summary",
        "Duration of runs.",
        lambda m: (m.counts.runs_acknowledged + m.counts.runs_failed, m.counts.run_seconds),
    ),
    Metric(
        "kontrol_leader_last_run_seconds",
        "gauge",
        "Duration of the last run, in seconds; absent before the first.",
        lambda m: m.counts.last_run_seconds if m.counts.last_run else None,
    ),
    Metric(
        "kontrol_leader_run_age_seconds",
        "gauge",
        "Seconds since the run under way began; absent if none is.",
        _since(lambda m: m.counts.running_since),
    ),
    Metric(
        "kontrol_leader_oldest_change_seconds",
        "gauge",
        "Seconds since the oldest change that no acknowledged run has covered; absent if there is "
        "none, and if this master does not lead.",
        _since(lambda m: m.leader.waiting_since),
    ),
    Metric(
        "kontrol_leader_runs_in_a_row",
        "gauge",
        "Runs in a row that each seem to be caused by the run before; from 10 on, the callback "
        "probably changes what it watches.",
        lambda m: m.counts.following,
    ),
    Metric(
        "kontrol_leader_last_run_timestamp_seconds",
        "gauge",
        "When a run last ended, in seconds since 1970; absent before the first.",
        _moment(lambda m: m.counts.last_run),
    ),
    Metric(
        "kontrol_leader_last_success_timestamp_seconds",
        "gauge",
        "When a run was last acknowledged, in seconds since 1970; absent before the first.",
        _moment(lambda m: m.counts.last_success),
    ),
    Metric(
        "kontrol_leader_digest_changes_total",
        "counter",
        "Changes of the ensemble's digest while this master led.",
        lambda m: m.counts.digests,
    ),
    Metric(
        "kontrol_leader_due",
        "gauge",
        "1 for the reason why a run is due on this master: the ensemble or the callback changed, a "
        "run was not acknowledged, an operator requested it, the last run did (`again`), or "
        "`KONTROL_EVERY` has passed (`schedule`).",
        _due,
        ("reason",),
    ),
    Metric(
        "kontrol_leader_held",
        "gauge",
        "1 for what holds a run that is due: the damper, the back-off after a failure (`retry`), "
        "masters that still have the previous callback (`rollout`), an unfinished run of an "
        "earlier leader (`predecessor`), pods missing after an outage (`gap`), or the brake.",
        _held,
        ("hold",),
    ),
    Metric(
        "kontrol_leader_held_remaining_seconds",
        "gauge",
        "Seconds for which a run that is due is held, unless something changes; absent if none is.",
        _held_for,
    ),
    Metric(
        "kontrol_leader_next_run_seconds",
        "gauge",
        "Seconds until the callback runs although nothing changes, as its last run requested or "
        "`KONTROL_EVERY` has it; absent if neither does, if a run is due, and if this master does "
        "not lead.",
        _next,
    ),
    Metric(
        "kontrol_master_published_version",
        "gauge",
        "The version of what is published, as this master has it from etcd; 0 before the first.",
        lambda m: m.publications.current.version,
    ),
    Metric(
        "kontrol_master_published_pods",
        "gauge",
        "Pods that follow what is published by way of this master: `latest` have the latest "
        "version, `behind` have not.",
        _receivers,
        ("version",),
    ),
    Metric(
        "kontrol_leader_note",
        "gauge",
        "1 while the last acknowledged run's note stands, as `kontrol status` shows it; 0 without "
        "one, and if this master does not lead.",
        lambda m: int(m.leader.note is not None),
    ),
)
