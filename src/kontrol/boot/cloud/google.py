"""Google Cloud: a metadata server that requires the header `Metadata-Flavor: Google`.

Each of its answers has that header, too. On GKE with workload identity, a server of the cluster
takes its place and does not have all facts: so there is one request for each, and only the zone is
required.
"""

import asyncio
from collections.abc import Mapping

from kontrol.boot.cloud.provider import LINK_LOCAL, BadMetadata, address, fetch, word
from kontrol.boot.facts import Machine
from kontrol.ensemble.canonical import JSON
from kontrol.httpclient import HTTPError

_FLAVOR = {"Metadata-Flavor": "Google"}
_EIP = "network-interfaces/0/access-configs/0/external-ip"


class Google:
    """The server at `base`."""

    def __init__(self, base: str = LINK_LOCAL) -> None:
        self._base = base

    def matches(self, machine: Mapping[str, str]) -> bool:
        """Compute Engine names itself as the product."""
        return machine.get("product_name") == "Google Compute Engine"

    async def describe(self, timeout: float) -> Machine:
        """Return the facts of the instance."""
        timeout /= 2  # for each of two rounds
        zone = _last(await self._get("zone", timeout))
        if zone is None:
            raise BadMetadata("instance/zone: no zone")
        async with asyncio.TaskGroup() as group:
            kind = group.create_task(self._optional("machine-type", timeout))
            name = group.create_task(self._optional("hostname", timeout))
            public = group.create_task(self._optional(_EIP, timeout))
        return Machine(
            eip=address(public.result()),
            zone=zone,
            region=zone.rpartition("-")[0] or None,
            instance_type=_last(kind.result()),
            hostname=word(name.result()),
        )

    async def _get(self, path: str, timeout: float) -> str:
        url = f"{self._base}/computeMetadata/v1/instance/{path}"
        answer = await fetch(url, _FLAVOR, timeout)
        if answer.headers.get("metadata-flavor") != "Google":
            raise BadMetadata(f"instance/{path}: not from Google's server")
        if answer.status != 200:
            raise BadMetadata(f"instance/{path}: status {answer.status}")
        return answer.body.decode("utf-8", "replace")

    async def _optional(self, path: str, timeout: float) -> JSON:
        try:
            return await self._get(path, timeout)
        except (BadMetadata, HTTPError):
            return None


def _last(value: JSON) -> str | None:
    """Return the last part of a resource's name, as of `projects/1/zones/europe-west1-b`."""
    return word(value.rpartition("/")[2]) if isinstance(value, str) else None
