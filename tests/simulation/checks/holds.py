"""What holds a run: the gap, the brake, the damper; and that nothing holds it longer."""

import json
from collections.abc import Iterator

from tests.simulation.health import Health
from tests.simulation.history import History, Started

SKEW = 1.06  # how much faster a clock may go than another, that is within 5 percent


def silence_of_the_tier(history: History) -> Iterator[str]:
    """6: within TTL of an outage longer than TTL/3, of all masters, no run tells a pod lost."""
    health = Health()
    for entry in history:
        health.apply(entry)
        if isinstance(entry, Started):
            ttl = health.settings[entry.node].ttl
            lost = [pod["id"] for pod in json.loads(entry.given)["lost"]]
            over = health.since_outage(ttl / 3 * SKEW + 1, entry.at)
            if lost and over < ttl / SKEW:
                yield f"run {entry.run} tells {lost} lost, {over:.3f} s after an outage of the tier"
