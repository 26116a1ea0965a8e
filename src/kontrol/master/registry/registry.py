"""The registry: keepalives in, pods in the store out, acknowledged once the store has them.

The common keepalive says nothing new. It costs no write: decided on the mirror, it is one lease
refresh. Everything else goes through the one `Writer`.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.pod import BadRecord, Keepalive, parse_keepalive
from kontrol.master.mirror.mirror import Mirror
from kontrol.master.records.records import Records
from kontrol.master.registry.admission import Refresh, View, decide
from kontrol.master.registry.writer import Writer
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import Store, StoreError

log = logging.getLogger(__name__)


class Registry:
    """Takes keepalives. `run` must be running for those that change something.

    `outcomes` counts them: `refreshed`, `written`, or the name of the refusal.
    """

    def __init__(
        self,
        store: Store,
        records: Records,
        mirror: Mirror,
        *,
        ttl: float,
        leader: Callable[[], str | None],
    ) -> None:
        """`ttl` in seconds is what a silent pod is given; `leader` tells the leader's name."""
        self._store = store
        self._mirror = mirror
        self._ttl = ttl
        self._leader = leader
        self.outcomes: Counter[str] = Counter()
        self.writer = Writer(store, records, mirror, ttl=ttl)

    async def run(self) -> None:
        """Write what changes, until cancelled."""
        await self.writer.run()

    async def ping(self, raw: str | bytes) -> dict[str, JSON]:
        """Take one keepalive, the JSON text; returns the acknowledgement, once the store has it.

        Returns `seq` (None after a farewell of a stranger), `ttl` in seconds, and `leader`.
        Raises `Refused`: `InvalidRecord`, `Conflict`, `Stale`, `Gone`, or `Unavailable`.
        """
        try:
            seq, outcome = await self._take(raw)
        except Refused as refused:
            self.outcomes[refused.name] += 1
            raise
        self.outcomes[outcome] += 1
        return {"seq": seq, "ttl": self._ttl, "leader": self._leader()}

    async def _take(self, raw: str | bytes) -> tuple[int | None, str]:
        """Take one keepalive; returns its `seq` and how it was taken. Raises `Refused`."""
        try:
            record = parse_keepalive(raw)
        except BadRecord as error:
            raise Refused("InvalidRecord", str(error)) from None
        try:
            async with asyncio.timeout(self._patience):
                seq = await self._unchanged(record)
                if seq is not None:
                    return seq, "refreshed"
                return await self.writer.write(record, len(raw)), "written"
        except (StoreError, TimeoutError) as error:
            why = str(error) or "not in time"
            message = f"this master has no answer from etcd ({why}); try another, or again"
            raise Refused("Unavailable", message) from None

    @property
    def _patience(self) -> float:
        """Seconds for the store to answer: less than an agent waits, little if it is silent."""
        return min(4.0, self._ttl / 7) if self._mirror.current else min(1.0, self._ttl / 20)

    async def _unchanged(self, record: Keepalive) -> int | None:
        """Refresh a keepalive that the mirror knows; None if that cannot be decided there."""
        if not self._mirror.current:
            return None
        live = self._mirror.live(record.key)
        if live is None:
            return None
        decision = decide(record, View(live=live, elsewhere=self._mirror.elsewhere(record)))
        if not isinstance(decision, Refresh):
            return None
        return live.pod.seq if await self._store.refresh(live.lease) > 0 else None
