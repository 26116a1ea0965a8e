"""Keepalives from the test itself, for pods that need no process of their own."""

import contextlib
import itertools
import json
from collections.abc import AsyncIterator

from tests.e2e.hub import DEADLINE
from tests.e2e.lab import Tier

from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.pod import key_of
from kontrol.rpc.client import Client

NONCE = "17979cfe362a00003d5a1e08"


def keepalive(app: str, ident: str, ip: str, **more: JSON) -> str:
    """Return the text of a keepalive, as an agent sends it."""
    record = {"app": app, "id": ident, "ip": ip, "key": key_of(ip), "role": "test", "payload": ""}
    return json.dumps({**record, **more})


class Feeder:
    """Reports pods to one master, each record newer than those before."""

    def __init__(self, client: Client, app: str) -> None:
        self.client = client
        self._app = app
        self._counter = itertools.count()
        self._addresses: dict[str, str] = {}

    async def ping(self, ident: str, **more: JSON) -> JSON:
        """Report a pod once; returns the acknowledgement."""
        i = len(self._addresses)
        ip = self._addresses.setdefault(ident, f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}")
        fields: dict[str, JSON] = {"nonce": NONCE, "n": next(self._counter), **more}
        raw = keepalive(self._app, ident, ip, **fields)
        answer: JSON = await self.client.call("ping", raw, timeout=DEADLINE)  # type: ignore[assignment]  # it is JSON on the wire
        return answer


@contextlib.asynccontextmanager
async def feeding(tier: Tier, master: int = 0) -> AsyncIterator[Feeder]:
    """Connect to a master of the tier."""
    async with Client(tier.addresses[master], tier.port) as client:
        yield Feeder(client, tier.app)
