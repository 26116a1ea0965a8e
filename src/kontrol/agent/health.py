"""The health of an agent: its readiness checks and its metrics, both read from its status."""

from collections.abc import Callable, Iterable
from typing import TypeAlias

from kontrol.agent.agent import AgentStatus
from kontrol.agent.reporter import TierStatus
from kontrol.ensemble.canonical import JSON
from kontrol.metrics import Metric, Total, Values

_Rows: TypeAlias = "Iterable[tuple[Values, float | Total]]"


def checks(status: AgentStatus) -> list[dict[str, JSON]]:
    """Return whether each tier has acknowledged the pod, and that it has not left.

    Each check has `name`, `ok`, `detail` and, if a keepalive failed, `error`: the text of a peer.
    """
    found: list[dict[str, JSON]] = [_check(tier) for tier in status.tiers]
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


def _reporting(tier: TierStatus) -> bool:
    return tier.acknowledged is not None and tier.acknowledged <= tier.ttl


def _tiers(read: Callable[[TierStatus], float | Total | None]) -> Callable[[AgentStatus], _Rows]:
    """Return how to read one number of each tier; None is left out."""
    return lambda status: [
        ((tier.tier,), value) for tier in status.tiers if (value := read(tier)) is not None
    ]


_TIER = ("tier",)

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
        "kontrol_agent_leaving",
        "gauge",
        "1 once the agent deregisters.",
        lambda status: int(status.leaving),
    ),
)
