"""What Kubernetes tells of the pod and its node, asked or not.

The pod object tells all; the downward API may tell enough. What is told in full is not asked for
again: a pod that is told everything needs no rights. A refusal is a problem only where the rest
does not suffice, which is when `app` and `role` are unknown.

Where boot looks: everything outside the process that facts come from, as one value.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kontrol.boot import downward, kubernetes, objects
from kontrol.boot.cloud import PROVIDERS, Make
from kontrol.boot.errors import BootError, Misconfigured, Unanswered
from kontrol.boot.facts import Fact, Facts, encode, lay, layer
from kontrol.boot.kubernetes import Absent, Api, ServiceAccount
from kontrol.boot.places import PODINFO
from kontrol.boot.waiting import BRIEF, Patience, ask
from kontrol.ensemble.canonical import JSON
from kontrol.settings import values
from kontrol.settings import variables as v

log = logging.getLogger(__name__)

# What a pod object tells.
_POD = {v.ID.name, v.IP.name, v.LABELS.name, v.ANNOTATIONS.name, v.HOST.name, v.HOSTNAME.name}
_DOWNWARD = "mount the pod's labels and annotations by a downwardAPI volume at /etc/podinfo"


class Told(NamedTuple):
    """Facts from Kubernetes, and the problem if the pod's cannot be had."""

    facts: Mapping[str, Fact]
    problem: BootError | None = None


@dataclass(frozen=True, slots=True)
class Sources:
    """Where facts are looked for.

    `system` are the facts of this host by name of variable; `machine` is what its firmware says;
    `cloud` is the value of KONTROL_CLOUD.
    """

    environ: Mapping[str, str]
    system: Mapping[str, str]
    machine: Mapping[str, str]
    patience: Patience
    account: ServiceAccount = field(default_factory=ServiceAccount)
    podinfo: Path = PODINFO
    cloud: str = "auto"
    providers: Mapping[str, Make] = field(default_factory=lambda: PROVIDERS)


async def look(around: Sources, given: Facts) -> Told:
    """Return what Kubernetes tells beside what is `given`; nothing outside Kubernetes."""
    try:
        told = downward.read(around.environ, around.podinfo)
        base = kubernetes.base(around.environ)
    except BootError as error:
        return Told({}, error)
    if base is None:
        log.info("no Kubernetes here (KUBERNETES_SERVICE_HOST is not set): asking the system")
        return Told(told)
    known = lay(given, told, layer("system", around.system))
    if not around.account.present():
        return Told(told, _judge(_no_account(around), known, logging.INFO))  # it may be on purpose
    api = Api(base, around.account)
    pod: Facts = {}
    if _POD - known.keys() or not has_labels(known):
        try:
            pod = await _pod(api, around, given, told)
        except BootError as error:
            problem = _judge(error, known)
            if problem is not None or isinstance(error, Unanswered):  # the node would not be either
                return Told(told, problem)
    named = lay(pod, told, given)
    node = await _node(api, around, named[v.HOSTNAME.name].text) if v.HOSTNAME.name in named else {}
    return Told(lay(pod, told, node))


async def _pod(api: Api, around: Sources, given: Facts, told: Facts) -> dict[str, Fact]:
    """Return what our pod's object tells. Raises `BootError`."""
    known = lay(given, told)
    if v.NAMESPACE.name in known:
        namespace = known[v.NAMESPACE.name].text
    else:
        namespace = around.account.namespace() or "default"
    patience = around.patience.at_most(BRIEF) if has_labels(known) else around.patience

    def read(document: JSON) -> objects.Pod | None:
        found = objects.pod(document)
        return None if found.ip is None and v.IP.name not in known else found

    absent: Absent | None = None
    for name in _names(given, told, layer("system", around.system)):
        what = f"pod {name} of namespace {namespace}"
        try:
            pod = await ask(api, kubernetes.pod_path(namespace, name), read, what, patience)
            return layer("api", _pod_texts(pod))
        except Absent as error:
            absent = error
    raise Absent(
        f"{absent}. If this pod has another name or namespace (hostNetwork, hostname), tell it in "
        "POD_NAME and NAMESPACE, by fieldRef metadata.name and metadata.namespace"
    )


def _names(given: Facts, told: Facts, system: Facts) -> list[str]:
    """Return what the pod may be called: as it was told, else as its host is, else as we are."""
    sources = (told,) if v.ID.name in told else (system, given)
    return list(dict.fromkeys(each[v.ID.name].text for each in sources if v.ID.name in each))


async def _node(api: Api, around: Sources, name: str) -> dict[str, Fact]:
    """Return what the node's object tells; nothing, and a line in the log, if it cannot be had."""
    try:
        node = await ask(
            api,
            kubernetes.node_path(name),
            objects.node,
            f"node {name}",
            around.patience.at_most(BRIEF),
        )
    except BootError as error:
        log.warning("going on without what the node object tells: %s", error)
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


def _judge(problem: BootError, known: Facts, level: int = logging.WARNING) -> BootError | None:
    """Return the problem, or None if what is known suffices: then it is a line in the log."""
    if not has_labels(known):
        return type(problem)(f"{problem}. Or do without: {_DOWNWARD}")
    log.log(level, "going on with what the downward API tells: %s", problem)
    return None


def _no_account(around: Sources) -> Misconfigured:
    return Misconfigured(
        f"there is no service account token in {around.account.folder} "
        "(automountServiceAccountToken: false?), so the Kubernetes API cannot be asked"
    )


def has_labels(facts: Facts) -> bool:
    """Tell whether the labels that every pod of an ensemble has are known."""
    if v.LABELS.name not in facts:
        return False
    try:
        v.LABELS.parse(facts[v.LABELS.name].text)
    except values.BadValue:
        return False
    return True
