"""AWS: the instance metadata service, version 2: a token by PUT, then everything else with it.

The packets that carry the token have a hop limit, 1 by default: through a container's network they
are lost on the way, and the PUT has a connection but never an answer.
That is the usual problem, so the message names it. Version 1, without a token, is used only on
request: any process that can be made to send a GET could use it.
"""

import asyncio
import re
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
from kontrol.httpclient import HTTPError, TimedOut

_TTL = "60"  # seconds that the token is valid: it is used immediately
_TOKEN = re.compile(rb"[!-~]{1,1024}\Z")


class Aws:
    """The service at `base`, with a token (version 2) or without (version 1)."""

    def __init__(self, base: str = LINK_LOCAL, *, token: bool = True) -> None:
        self._base = base
        self._with_token = token

    def matches(self, machine: Mapping[str, str]) -> bool:
        """Nitro names it as the vendor, Xen in the BIOS version."""
        return (
            machine.get("sys_vendor") == "Amazon EC2"
            or "amazon" in machine.get("bios_version", "").lower()
        )

    async def describe(self, timeout: float) -> Machine:
        """Return the instance's identity document, its public address and its name."""
        headers = await self._session(timeout / 2) if self._with_token else {}
        url = f"{self._base}/latest/dynamic/instance-identity/document"
        answer = await fetch(url, headers, timeout / 2)
        identity = document(answer, "the instance's identity document")
        region = word(identity.get("region"))
        if region is None:
            raise BadMetadata("the instance's identity document names no region")
        async with asyncio.TaskGroup() as group:
            public = group.create_task(self._optional("public-ipv4", headers, timeout / 4))
            name = group.create_task(self._optional("local-hostname", headers, timeout / 4))
        return Machine(
            eip=address(public.result()),
            zone=word(identity.get("availabilityZone")),
            region=region,
            instance_type=word(identity.get("instanceType")),
            hostname=word(name.result()),
        )

    async def _session(self, timeout: float) -> dict[str, str]:
        """Return the header with the token."""
        try:
            answer = await fetch(
                f"{self._base}/latest/api/token",
                {"X-aws-ec2-metadata-token-ttl-seconds": _TTL},
                timeout,
                method="PUT",
            )
        except TimedOut as error:
            raise BadMetadata(
                f"{error}: the token was lost on the way, most likely because the instance's hop "
                "limit is 1. Raise it: aws ec2 modify-instance-metadata-options --instance-id ID "
                "--http-put-response-hop-limit 2 (or KONTROL_CLOUD=aws-v1, or none)"
            ) from None
        if answer.status == 403:
            raise BadMetadata("the metadata service is turned off for this instance (403)")
        if answer.status != 200 or not _TOKEN.match(answer.body):
            raise BadMetadata(f"no token: status {answer.status}")
        return {"X-aws-ec2-metadata-token": answer.body.decode("ascii")}

    async def _optional(
        self, name: str, headers: Mapping[str, str], timeout: float
    ) -> bytes | None:
        try:
            answer = await fetch(f"{self._base}/latest/meta-data/{name}", headers, timeout)
        except HTTPError:
            return None
        return answer.body if answer.status == 200 else None
