"""Azure: the instance metadata service, which requires the header `Metadata: true`.

A node behind a standard load balancer has no public address here: Azure does not report it to the
machine.
"""

from collections.abc import Mapping

from kontrol.boot.cloud.provider import (
    LINK_LOCAL,
    BadMetadata,
    address,
    document,
    fetch,
    word,
)
from kontrol.boot.facts import Machine
from kontrol.ensemble.canonical import JSON

_VERSION = "2021-02-01"  # of the API: in every region, with all fields used here
_ASSET_TAG = "7783-7084-3265-9085-8269-3286-77"  # all of Azure has it, Hyper-V elsewhere does not


class Azure:
    """The service at `base`."""

    def __init__(self, base: str = LINK_LOCAL) -> None:
        self._base = base

    def matches(self, machine: Mapping[str, str]) -> bool:
        """Azure's chassis has a tag of its own."""
        return machine.get("chassis_asset_tag") == _ASSET_TAG

    async def describe(self, timeout: float) -> Machine:
        """Return the facts of the instance document."""
        url = f"{self._base}/metadata/instance?api-version={_VERSION}"
        answer = await fetch(url, {"Metadata": "true"}, timeout)
        instance = document(answer, "the instance document")
        compute = _at(instance, "compute")
        region = word(_at(compute, "location"))
        if region is None:
            raise BadMetadata("the instance document names no location")
        zone = word(_at(compute, "zone"))
        first = _at(_at(_at(_at(_at(instance, "network"), "interface"), 0), "ipv4"), "ipAddress")
        return Machine(
            eip=address(_at(_at(first, 0), "publicIpAddress")),
            # as Azure's Kubernetes labels its nodes: a zone's number is not unique by itself
            zone=f"{region}-{zone}" if zone else None,
            region=region,
            instance_type=word(_at(compute, "vmSize")),
            hostname=word(_at(_at(compute, "osProfile"), "computerName")),
        )


def _at(value: JSON, key: str | int) -> JSON:
    """Return the value at a key or index, None if there is none."""
    if isinstance(value, dict) and isinstance(key, str):
        return value.get(key)
    if isinstance(value, list) and isinstance(key, int):
        return value[key] if key < len(value) else None
    return None
