"""The metrics of a master, read from its parts when somebody asks."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeAlias, get_args

from kontrol.ensemble.canonical import JSON
from kontrol.master.leader import policy
from kontrol.master.master import Master
from kontrol.metrics import Metric, Values

_Rows: TypeAlias = "Iterable[tuple[Values, float]]"

_ROLES = 100  # told one by one; agents name them, and could name many
_OTHERS = "(others)"  # told once, though an agent may call its role that


def _pods(master: Master) -> _Rows:
    roles = Counter(pod.role for pod in master.mirror.ensemble)
    told = {role: count for role, count in roles.most_common(_ROLES) if role != _OTHERS}
    rest = roles.total() - sum(told.values())
    return [((role,), count) for role, count in [*told.items(), *[(_OTHERS, rest)] * bool(rest)]]


def _age(master: Master) -> float | None:
    age = master.mirror.cache.age
    return None if age == float("inf") else age


def _term(master: Master) -> float | None:
    record: dict[str, JSON] | None = master.leader_record
    term = None if record is None else record.get("term")
    return term if isinstance(term, int) else None


def _plan(master: Master) -> policy.Idle | policy.Wait | policy.Run:
    """What this master is about to do, as leader."""
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
    if not isinstance(plan, policy.Wait):
        return None
    return max(0.0, plan.until - asyncio.get_running_loop().time())


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
        "Keepalives that were refused here because of `KONTROL_MAX_PODS` (`TooManyPods`), "
        "`KONTROL_MAX_BYTES` or `KONTROL_MAX_JOINS`.",
        lambda m: [((name,), count) for name, count in sorted(m.registry.quota.refused.items())],
        ("outcome",),
    ),
    Metric(
        "kontrol_master_keepalives_total",
        "counter",
        "Keepalives taken here: `refreshed` said nothing new, `written` changed something; any "
        "other outcome is the name of a refusal.",
        lambda m: [((name,), count) for name, count in sorted(m.registry.outcomes.items())],
        ("outcome",),
    ),
    Metric(
        "kontrol_master_keepalives_waiting",
        "gauge",
        "Keepalives that wait to be written.",
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
        "Seconds since etcd confirmed that the mirror misses nothing; absent before it ever did.",
        _age,
    ),
    Metric(
        "kontrol_master_mirror_current",
        "gauge",
        "1 if that was within a third of the TTL: keepalives are then decided on the mirror.",
        lambda m: int(m.mirror.cache.current),
    ),
    Metric(
        "kontrol_master_mirror_revision",
        "gauge",
        "etcd's revision of the last change that the mirror shows.",
        lambda m: m.mirror.cache.revision,
    ),
    Metric(
        "kontrol_master_store_restores_total",
        "counter",
        "How often etcd was found to have gone back, to another cluster or a lower revision.",
        lambda m: m.mirror.cache.restores,
    ),
    Metric(
        "kontrol_master_candidates",
        "gauge",
        "Masters that stand for leader, the leader among them.",
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
        "The leader's term, whoever leads; absent while nobody does.",
        _term,
    ),
    Metric(
        "kontrol_master_elections_won_total",
        "counter",
        "Terms that this master has led.",
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
        "Seconds for which the last such proof still lets this master act; absent if it does not "
        "lead.",
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
        "How long runs took.",
        lambda m: (m.counts.runs_acknowledged + m.counts.runs_failed, m.counts.run_seconds),
    ),
    Metric(
        "kontrol_leader_last_run_seconds",
        "gauge",
        "How long the last run took; absent before the first.",
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
        "Seconds for which the oldest change has waited that no acknowledged run was for; absent "
        "if none waits, and if this master does not lead.",
        _since(lambda m: m.leader.waiting_since),
    ),
    Metric(
        "kontrol_leader_runs_in_a_row",
        "gauge",
        "How many runs in a row seem to have caused the last run, each the next; 10 are a callback "
        "that changes what it watches.",
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
        "Changes of the ensemble's digest that this master saw as leader.",
        lambda m: m.counts.digests,
    ),
    Metric(
        "kontrol_leader_due",
        "gauge",
        "1 for why a run is due on this master: the ensemble or the callback changed, a run was "
        "not acknowledged, or an operator asked for it.",
        _due,
        ("reason",),
    ),
    Metric(
        "kontrol_leader_held",
        "gauge",
        "1 for what holds a run that is due: the damper, the back-off after a failure (`retry`), "
        "masters that still have the former callback (`rollout`), a run that a former leader left "
        "(`predecessor`), the gap, the brake.",
        _held,
        ("hold",),
    ),
    Metric(
        "kontrol_leader_held_remaining_seconds",
        "gauge",
        "Seconds for which it will be held, unless things change; absent if nothing holds it.",
        _held_for,
    ),
)
