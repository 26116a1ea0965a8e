"""How an agent is doing: its checks of readiness and its metrics, both read from its status."""

from collections.abc import Callable, Iterable
from typing import TypeAlias

from kontrol.agent.agent import AgentStatus
from kontrol.agent.reporter import TierStatus
from kontrol.ensemble.canonical import JSON
from kontrol.metrics import Metric, Total, Values

_Rows: TypeAlias = "Iterable[tuple[Values, float | Total]]"


def checks(status: AgentStatus) -> list[dict[str, JSON]]:
    """Return whether each tier has acknowledged the pod, and that it has not left.

    Each check has `name`, `ok`, `detail` and, if a keepalive failed, `error`: a peer's own words.
    """
    found: list[dict[str, JSON]] = [_check(tier) for tier in status.tiers]
    if status.leaving:
        found.append({"name": "staying", "ok": False, "detail": "the agent has said farewell"})
    return found


def _check(tier: TierStatus) -> dict[str, JSON]:
    at = tier.acknowledged
    told = "never acknowledged" if at is None else f"acknowledged {at:.1f} s ago"
    check: dict[str, JSON] = {
        "name": f"tier {tier.tier}",
        "ok": _reporting(tier),
        "detail": f"{told}; the TTL is {tier.ttl:g} s",
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
        "Always 1; the labels tell the pod's id and key.",
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
        "Seconds since the tier last acknowledged a keepalive; absent before it ever did.",
        _tiers(lambda tier: tier.acknowledged),
        _TIER,
    ),
    Metric(
        "kontrol_agent_ttl_seconds",
        "gauge",
        "Seconds after which the tier takes a silent pod for gone, as it told last.",
        _tiers(lambda tier: tier.ttl),
        _TIER,
    ),
    Metric(
        "kontrol_agent_keepalives_sent_total",
        "counter",
        "Keepalives sent, farewells among them.",
        _tiers(lambda tier: tier.sent),
        _TIER,
    ),
    Metric(
        "kontrol_agent_keepalives_acknowledged_total",
        "counter",
        "Keepalives that the tier acknowledged.",
        _tiers(lambda tier: tier.taken),
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
        "Attempts that came to no answer: no address, no connection, silence, or no etcd.",
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
        _tiers(lambda tier: (tier.taken, tier.round_trips)),
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
        "Changes of the payload that were taken over.",
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
