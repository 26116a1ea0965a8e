"""The health of an agent: its readiness checks and its metrics, both read from its status."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

from kontrol.agent.agent import AgentStatus
from kontrol.agent.reporter import TierStatus
from kontrol.ensemble.canonical import JSON
from kontrol.metrics import Metric, Total, Values

if TYPE_CHECKING:
    from kontrol.agent.hooks import HookStatus
    from kontrol.agent.published import PublishedStatus

_Rows: TypeAlias = "Iterable[tuple[Values, float | Total]]"


def checks(status: AgentStatus) -> list[dict[str, JSON]]:
    """Return whether each tier has acknowledged the pod, whether any hears it, and whether it left.

    Each check has `name`, `ok`, `detail` and, if a keepalive failed, `error`: the text of a peer.
    """
    found: list[dict[str, JSON]] = [_check(tier) for tier in status.tiers]
    if status.hooks is not None and not status.leaving:
        found.append(_silence(status, status.hooks))
    if status.published is not None:
        found.append(_check_published(status.published))
    if status.leaving:
        found.append({"name": "staying", "ok": False, "detail": "the agent has deregistered"})
    return found


def _check(tier: TierStatus) -> dict[str, JSON]:
    at = tier.acknowledged
    when = "never acknowledged" if at is None else f"acknowledged {at:.1f} s ago"
    check: dict[str, JSON] = {
        "name": f"tier {tier.tier}",
        "ok": _reporting(tier),
        "detail": f"{when}; the TTL is {tier.ttl:g} s",
    }
    return check if tier.error is None else {**check, "error": tier.error}


def _silence(status: AgentStatus, hooks: "tuple[HookStatus, ...]") -> dict[str, JSON]:
    """Return whether any tier hears the pod, and how its last hook went."""
    parts = ["heard" if status.silent is None else f"silent for {status.silent:.1f} s"]
    running = (hook for hook in hooks if hook.running is not None)
    parts += [f"hook {hook.name} runs for {hook.running:.1f} s" for hook in running]
    last = min(
        (hook for hook in hooks if hook.ended is not None),
        key=lambda hook: hook.ended or 0.0,
        default=None,
    )
    if last is not None:
        how = "done" if last.error is None else f"failed ({last.error})"
        parts.append(f"hook {last.name} {how} {last.ended or 0:.1f} s ago")
    return {"name": "silence", "ok": status.silent is None, "detail": "; ".join(parts)}


def _check_published(published: "PublishedStatus") -> dict[str, JSON]:
    """Return what the file has. A pod that cannot write it still serves by what it had: it is ok.

    So are all others with the same fault, and a tier whose pods are all taken out serves nothing.
    """
    of = f" of tier {published.tier}" if published.tier is not None else ""
    detail = f"version {published.version}{of} in {published.path}"
    hook = published.hook
    if hook is not None and hook.error is not None:
        detail += f"; KONTROL_ON_PUBLISHED failed: {hook.error}"
    check: dict[str, JSON] = {"name": "published", "ok": True, "detail": detail}
    return check if published.error is None else {**check, "error": published.error}


def _reporting(tier: TierStatus) -> bool:
    return tier.acknowledged is not None and tier.acknowledged <= tier.ttl


def _tiers(read: Callable[[TierStatus], float | Total | None]) -> Callable[[AgentStatus], _Rows]:
    """Return how to read one number of each tier; None is left out."""
    return lambda status: [
        ((tier.tier,), value) for tier in status.tiers if (value := read(tier)) is not None
    ]


def _hooks(read: "Callable[[HookStatus], float | None]") -> Callable[[AgentStatus], _Rows]:
    """Return how to read one number of each hook; None is left out."""
    return lambda status: [
        ((hook.name,), value) for hook in _all(status) if (value := read(hook)) is not None
    ]


def _all(status: AgentStatus) -> "Iterable[HookStatus]":
    """Return all hooks that have run."""
    yield from status.hooks or ()
    if status.published is not None and status.published.hook is not None:
        yield status.published.hook


def _published(read: "Callable[[PublishedStatus], float]") -> Callable[[AgentStatus], _Rows]:
    """Return how to read one number of what is published; the tier is empty if it is unknown."""

    def rows(status: AgentStatus) -> _Rows:
        published = status.published
        return [] if published is None else [((published.tier or "",), read(published))]

    return rows


_TIER = ("tier",)
_HOOK = ("hook",)

METRICS: tuple[Metric[AgentStatus], ...] = (
    Metric(
        "kontrol_agent_info",
        "gauge",
        "Always 1; the labels are the pod's id and key.",
        lambda status: [((status.id, status.key), 1)],
        ("id", "key"),
    ),
    Metric(
        "kontrol_agent_reporting",
        "gauge",
        "1 if the tier acknowledged a keepalive within its TTL, so that the pod counts as alive.",
        _tiers(_reporting),
        _TIER,
    ),
    Metric(
        "kontrol_agent_acknowledged_age_seconds",
        "gauge",
        "Seconds since the tier last acknowledged a keepalive; absent before the first time.",
        _tiers(lambda tier: tier.acknowledged),
        _TIER,
    ),
    Metric(
        "kontrol_agent_ttl_seconds",
        "gauge",
        "Seconds after which the tier treats a pod that does not report as gone, as last received.",
        _tiers(lambda tier: tier.ttl),
        _TIER,
    ),
    Metric(
        "kontrol_agent_keepalives_sent_total",
        "counter",
        "Keepalives sent, including deregistrations.",
        _tiers(lambda tier: tier.sent),
        _TIER,
    ),
    Metric(
        "kontrol_agent_keepalives_acknowledged_total",
        "counter",
        "Keepalives that the tier acknowledged.",
        _tiers(lambda tier: tier.accepted),
        _TIER,
    ),
    Metric(
        "kontrol_agent_keepalives_refused_total",
        "counter",
        "Keepalives that the tier answered with a refusal; the log has the reason.",
        _tiers(lambda tier: tier.refused),
        _TIER,
    ),
    Metric(
        "kontrol_agent_keepalives_failed_total",
        "counter",
        "Attempts without an answer: no address, no connection, a timeout, or no etcd.",
        _tiers(lambda tier: tier.failed),
        _TIER,
    ),
    Metric(
        "kontrol_agent_consecutive_failures",
        "gauge",
        "Attempts that failed, or were refused, since the last acknowledgement.",
        _tiers(lambda tier: tier.failures),
        _TIER,
    ),
    Metric(
        "kontrol_agent_round_trip_seconds",
        "summary",
        "Time from sending a keepalive to its acknowledgement, which waits for etcd.",
        _tiers(lambda tier: (tier.accepted, tier.round_trips)),
        _TIER,
    ),
    Metric(
        "kontrol_agent_seq",
        "gauge",
        "The pod's sequence number in the tier; absent until it is known.",
        _tiers(lambda tier: tier.seq),
        _TIER,
    ),
    Metric(
        "kontrol_agent_payload_changes_total",
        "counter",
        "Changes of the payload that were accepted.",
        lambda status: status.n,
    ),
    Metric(
        "kontrol_agent_payload_error",
        "gauge",
        "1 while the payload file's content is not in force because of an error; the log has it.",
        lambda status: int(status.payload_error is not None),
    ),
    Metric(
        "kontrol_agent_silent",
        "gauge",
        "1 while no tier has acknowledged a keepalive for 2/3 of its TTL, also since the start.",
        lambda status: int(status.silent is not None),
    ),
    Metric(
        "kontrol_agent_hook_runs_total",
        "counter",
        "Runs of a hook, retries included.",
        _hooks(lambda hook: hook.runs),
        _HOOK,
    ),
    Metric(
        "kontrol_agent_hook_failures_total",
        "counter",
        "Runs of a hook that failed: it did not exit with status 0, or took too long.",
        _hooks(lambda hook: hook.failures),
        _HOOK,
    ),
    Metric(
        "kontrol_agent_hook_timeouts_total",
        "counter",
        "Runs of a hook that took too long, and were killed with all their processes.",
        _hooks(lambda hook: hook.timeouts),
        _HOOK,
    ),
    Metric(
        "kontrol_agent_hook_failing",
        "gauge",
        "1 if the last run of the hook failed; the log says why.",
        _hooks(lambda hook: int(hook.error is not None)),
        _HOOK,
    ),
    Metric(
        "kontrol_agent_hook_seconds",
        "gauge",
        "Seconds that the last run of the hook took.",
        _hooks(lambda hook: hook.seconds),
        _HOOK,
    ),
    Metric(
        "kontrol_agent_published_version",
        "gauge",
        "The version of what is published that this pod has; 0 without any, absent if the agent "
        "keeps nothing published.",
        _published(lambda published: published.version),
        _TIER,
    ),
    Metric(
        "kontrol_agent_published_documents",
        "gauge",
        "Published documents that this pod has.",
        _published(lambda published: published.documents),
        _TIER,
    ),
    Metric(
        "kontrol_agent_published_error",
        "gauge",
        "1 while the last version received could not be written, or was no published document; the "
        "log says why.",
        _published(lambda published: int(published.error is not None)),
        _TIER,
    ),
    Metric(
        "kontrol_agent_published_failures_total",
        "counter",
        "Attempts to write what is published that failed.",
        _published(lambda published: published.failures),
        _TIER,
    ),
    Metric(
        "kontrol_agent_live_error",
        "gauge",
        "1 while the file of live facts cannot be used because of an error; the log has it.",
        lambda status: int(status.live_error is not None),
    ),
    Metric(
        "kontrol_agent_leaving",
        "gauge",
        "1 once the agent deregisters.",
        lambda status: int(status.leaving),
    ),
)
