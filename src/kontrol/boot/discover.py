"""Finding the facts: every source is asked at once, and laid over the others in a fixed order.

From the top: the environment, the pod object, the downward API, the node object, the cloud, the
system. What stands higher is nearer to what a person said, or newer.

Invariant: only the pod's own facts can fail a boot; a node, a cloud or a name that cannot be found
is a line in the log.
"""

import asyncio
import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kontrol.boot import cluster
from kontrol.boot.cloud import detect
from kontrol.boot.errors import BootError
from kontrol.boot.facts import EXPORTED, Fact, fit, lay, layer, table
from kontrol.boot.surroundings import Surroundings
from kontrol.settings import host_facts, values
from kontrol.settings import variables as v

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Findings:
    """The facts, and the problem that the boot cannot go on with, if any."""

    facts: Mapping[str, Fact]
    problem: BootError | None = None


async def discover(around: Surroundings) -> Findings:
    """Look everywhere; never raises for what it finds, or does not find."""
    given = layer("environment", {name: around.environ.get(name) for name in EXPORTED})
    if _debug(around.environ):
        log.info("KONTROL_MODE has debug: neither Kubernetes nor a cloud is asked")
        return Findings(given)
    around = replace(around, patience=around.patience.start())
    limit = around.patience.total
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(detect(around.cloud, around.machine, around.providers, limit))
        looking = group.create_task(cluster.look(around, given))
    told, problem = looking.result()
    answer = asking.result()
    cloud = {} if answer is None else layer(answer[0], answer[1].texts())
    facts, left_out = fit(lay(given, told, cloud, layer("system", around.system)))
    for what in left_out:
        log.warning("%s is not exported: it is longer than an environment variable may be", what)
    if problem is None and not cluster.has_labels(facts):
        log.warning(
            "labels are %s: kontrol itself needs app and role, and will not start without",
            dict(table(facts, v.LABELS.name)) or "unknown",
        )
    return Findings(facts, problem)


def system(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what this host tells of itself. Outside Kubernetes it is the node as well."""
    facts = host_facts(environ)
    if not environ.get("KUBERNETES_SERVICE_HOST", "").strip():
        facts[v.HOSTNAME.name] = socket.gethostname()
    return facts


def _debug(environ: Mapping[str, str]) -> bool:
    try:
        return "debug" in values.modes(environ.get(v.MODE.name, "").strip() or "agent")
    except values.BadValue:
        return False
