"""What Kubernetes knows of the pod and its node, from the downward API and the API server.

The pod object has everything; the downward API may have enough. What it has is not requested
again: a pod that gets everything that way needs no rights. A refusal is a problem only if the rest
does not suffice, that is if `app` and `role` are unknown.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kontrol.boot import (
    PODINFO,
    BootError,
    Misconfigured,
    Unanswered,
    downward,
    kubernetes,
    objects,
)
from kontrol.boot.cloud import PROVIDERS, MakeProvider
from kontrol.boot.facts import Fact, Facts, encode, layer, overlay
from kontrol.boot.kubernetes import Absent, Api, ServiceAccount
from kontrol.boot.retry import BRIEF, Retry, get_object
from kontrol.ensemble.canonical import JSON
from kontrol.settings import values
from kontrol.settings import variables as v

log = logging.getLogger(__name__)

# What a pod object has.
_POD = {v.ID.name, v.IP.name, v.LABELS.name, v.ANNOTATIONS.name, v.HOST.name, v.HOSTNAME.name}
_DOWNWARD = "mount the pod's labels and annotations by a downwardAPI volume at /etc/podinfo"


class Result(NamedTuple):
    """Facts from Kubernetes, and the problem if the pod's are not available."""

    facts: Mapping[str, Fact]
    problem: BootError | None = None


@dataclass(frozen=True, slots=True)
class Sources:
    """Where to look for facts: everything outside the process that they come from.

    `system` are the facts of this host by name of variable; `machine` is what its firmware says;
    `cloud` is the value of KONTROL_CLOUD.
    """

    environ: Mapping[str, str]
    system: Mapping[str, str]
    machine: Mapping[str, str]
    retry: Retry
    account: ServiceAccount = field(default_factory=ServiceAccount)
    podinfo: Path = PODINFO
    cloud: str = "auto"
    providers: Mapping[str, MakeProvider] = field(default_factory=lambda: PROVIDERS)


async def query(sources: Sources, given: Facts) -> Result:
    """Return what Kubernetes knows besides what is `given`; nothing outside Kubernetes."""
    try:
        projected = downward.read(sources.environ, sources.podinfo)
        base = kubernetes.base(sources.environ)
    except BootError as error:
        return Result({}, error)
    if base is None:
        log.info("no Kubernetes here (KUBERNETES_SERVICE_HOST is not set): using this host's facts")
        return Result(projected)
    known = overlay(given, projected, layer("system", sources.system))
    if not sources.account.present():  # may be on purpose
        return Result(projected, _required(_no_account(sources), known, logging.INFO))
    api = Api(base, sources.account)
    pod: Facts = {}
    if _POD - known.keys() or not has_labels(known):
        try:
            pod = await _pod(api, sources, given, projected)
        except BootError as error:
            problem = _required(error, known)
            if problem is not None or isinstance(error, Unanswered):  # the node would not be found
                return Result(projected, problem)
    named = overlay(pod, projected, given)
    node: Facts = {}
    if v.HOSTNAME.name in named:
        node = await _node(api, sources, named[v.HOSTNAME.name].text)
    return Result(overlay(pod, projected, node))


async def _pod(api: Api, sources: Sources, given: Facts, projected: Facts) -> dict[str, Fact]:
    """Return what this pod's object has. Raises `BootError`."""
    known = overlay(given, projected)
    if v.NAMESPACE.name in known:
        namespace = known[v.NAMESPACE.name].text
    else:
        namespace = sources.account.namespace() or "default"
    retry = sources.retry.at_most(BRIEF) if has_labels(known) else sources.retry

    def read(document: JSON) -> objects.Pod | None:
        found = objects.pod(document)
        return None if found.ip is None and v.IP.name not in known else found

    absent: Absent | None = None
    for name in _names(given, projected, layer("system", sources.system)):
        what = f"pod {name} of namespace {namespace}"
        try:
            pod = await get_object(api, kubernetes.pod_path(namespace, name), read, what, retry)
            return layer("api", _pod_texts(pod))
        except Absent as error:
            absent = error
    raise Absent(
        f"{absent}. If this pod has another name or namespace (hostNetwork, hostname), set them in "
        "POD_NAME and NAMESPACE, by fieldRef metadata.name and metadata.namespace"
    )


def _names(given: Facts, projected: Facts, system: Facts) -> list[str]:
    """Return the pod's possible names: the downward API's, else this host's, else the given one."""
    sources = (projected,) if v.ID.name in projected else (system, given)
    return list(dict.fromkeys(each[v.ID.name].text for each in sources if v.ID.name in each))


async def _node(api: Api, sources: Sources, name: str) -> dict[str, Fact]:
    """Return what the node's object has; nothing, and a line in the log, if it is not available."""
    try:
        node = await get_object(
            api,
            kubernetes.node_path(name),
            objects.node,
            f"node {name}",
            sources.retry.at_most(BRIEF),
        )
    except BootError as error:
        log.warning("continuing without the node object: %s", error)
        return {}
    return layer(
        "node",
        {
            **node.machine.texts(),
            v.NODE_LABELS.name: encode(node.labels),
            v.NODE_ANNOTATIONS.name: encode(node.annotations),
        },
    )


def _pod_texts(pod: objects.Pod) -> dict[str, str | None]:
    return {
        v.NAMESPACE.name: pod.namespace,
        v.ID.name: pod.name,
        v.IP.name: pod.ip,
        v.LABELS.name: encode(pod.labels),
        v.ANNOTATIONS.name: encode(pod.annotations),
        v.HOST.name: pod.host,
        v.HOSTNAME.name: pod.node,
    }


def _required(problem: BootError, known: Facts, level: int = logging.WARNING) -> BootError | None:
    """Return the problem, or None if what is known suffices: then it is a line in the log."""
    if not has_labels(known):
        return type(problem)(f"{problem}. Or do without: {_DOWNWARD}")
    log.log(level, "continuing with the downward API: %s", problem)
    return None


def _no_account(sources: Sources) -> Misconfigured:
    return Misconfigured(
        f"there is no service account token in {sources.account.folder} "
        "(automountServiceAccountToken: false?), so the Kubernetes API cannot be queried"
    )


def has_labels(facts: Facts) -> bool:
    """Return whether the labels that every pod of an ensemble has are known."""
    if v.LABELS.name not in facts:
        return False
    try:
        v.LABELS.parse(facts[v.LABELS.name].text)
    except values.BadValue:
        return False
    return True
