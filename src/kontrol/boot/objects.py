"""Pod and node objects of the Kubernetes API (core v1), as far as boot uses them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from kontrol.boot.facts import Machine
from kontrol.ensemble.canonical import JSON

# The current label, and the one of nodes before Kubernetes 1.17.
_ZONE = ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone")
_REGION = ("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region")
_TYPE = ("node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type")
_HOSTNAME = ("kubernetes.io/hostname",)


class BadObject(ValueError):
    """The document is not such an object; the message names the field."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod: its name, `ip` once it has one, its node's name and address once it has one."""

    name: str
    namespace: str
    ip: str | None
    node: str | None
    host: str | None
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Node:
    """A node: what it says of the machine, and its labels and annotations."""

    machine: Machine
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


def pod(document: JSON) -> Pod:
    """Parse a pod object. Raises `BadObject`."""
    top = _object(document, "the document")
    metadata = _object(top.get("metadata"), "metadata")
    spec = _object(top.get("spec") or {}, "spec")
    status = _object(top.get("status") or {}, "status")
    name = _text(metadata, "name")
    if name is None:
        raise BadObject("metadata.name is missing")
    return Pod(
        name=name,
        namespace=_text(metadata, "namespace") or "default",
        ip=_text(status, "podIP"),
        node=_text(spec, "nodeName"),
        host=_text(status, "hostIP"),
        labels=_table(metadata, "labels"),
        annotations=_table(metadata, "annotations"),
    )


def node(document: JSON) -> Node:
    """Parse a node object. Raises `BadObject`."""
    top = _object(document, "the document")
    metadata = _object(top.get("metadata"), "metadata")
    status = _object(top.get("status") or {}, "status")
    labels = _table(metadata, "labels")
    addresses = status.get("addresses") or []
    if not isinstance(addresses, list):
        raise BadObject("status.addresses is not a list")
    by_kind: dict[str, str] = {}
    for item in addresses:
        address = _object(item, "an item of status.addresses")
        kind, text = _text(address, "type"), _text(address, "address")
        if kind and text:
            by_kind.setdefault(kind, text)
    return Node(
        machine=Machine(
            hostname=_first(labels, _HOSTNAME)
            or by_kind.get("Hostname")
            or _text(metadata, "name"),
            eip=by_kind.get("ExternalIP"),
            zone=_first(labels, _ZONE),
            region=_first(labels, _REGION),
            instance_type=_first(labels, _TYPE),
        ),
        labels=labels,
        annotations=_table(metadata, "annotations"),
    )


def _first(labels: Mapping[str, str], keys: tuple[str, ...]) -> str | None:
    return next((labels[key] for key in keys if labels.get(key)), None)


def _object(value: JSON, what: str) -> dict[str, JSON]:
    if not isinstance(value, dict):
        raise BadObject(f"{what} is not an object")
    return value


def _text(parent: Mapping[str, JSON], key: str) -> str | None:
    """Return a string of the object; None if it is absent or empty."""
    value = parent.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise BadObject(f"{key} is not a string")
    return value


def _table(parent: Mapping[str, JSON], key: str) -> dict[str, str]:
    entries = _object(parent.get(key) or {}, key)
    table: dict[str, str] = {}
    for name, value in entries.items():
        if not isinstance(value, str):
            raise BadObject(f"{key}: the value of {name!r} is not a string")
        table[name] = value
    return table
