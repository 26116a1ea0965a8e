"""What the parts of the leader share: what belongs to the process, and a term's wake-up event."""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from kontrol.ensemble.urgent import Urgent
from kontrol.master.desired import DesiredState
from kontrol.master.election import Election
from kontrol.master.highwater import HighWater
from kontrol.master.leader.requests import Requests
from kontrol.master.mirror import Mirror
from kontrol.master.records.records import Records
from kontrol.store.protocol import Store, StoreError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeaderConfig:
    """Times in seconds; `brake` in percent of pods; `max_pods` is what the tier may have.

    Every `sweep_every`, old registrations are swept: those that were not used for `sweep_age`. The
    callback runs `every` so often at least, if set; `urgent` changes do not wait for the damper.
    """

    ttl: float
    fover: float
    brake: float
    sweep_every: float = 3600.0
    sweep_age: float = 24 * 3600.0
    max_pods: int = 50_000
    every: float | None = None
    urgent: Urgent = field(default_factory=Urgent)


@dataclass(frozen=True, slots=True)
class Tier:
    """The tier as this master knows it: its store, and what follows the store."""

    store: Store
    records: Records
    mirror: Mirror
    election: Election
    requests: Requests
    highwater: HighWater
    desired: DesiredState


@dataclass(frozen=True, slots=True)
class Host:
    """What a process takes from its machine: two clocks, and chance.

    `clock` is the boot clock, in seconds, which goes on while the machine sleeps and which cannot
    be set: for durations. `wall` returns the date and time, RFC 3339, for people to read.
    """

    clock: Callable[[], float]
    wall: Callable[[], str]
    rng: random.Random


class News(asyncio.Event):
    """Set when something changed that may change the decision of a term; awaited by its loop."""

    def __init__(self, pause: float) -> None:
        """`pause` is how many seconds to wait before a store that failed is asked again."""
        super().__init__()
        self._pause = pause

    async def wait_until(self, until: float | None) -> None:
        """Wait, at the latest until the loop time `until`, if there is one."""
        try:
            async with asyncio.timeout_at(until):
                await self.wait()
        except TimeoutError:
            pass

    async def retry(self, what: str, error: StoreError) -> None:
        """Log that the store failed to do `what`, pause, and have the loop do it again."""
        log.warning("waiting for the store, to %s: %s", what, error)
        await asyncio.sleep(self._pause)
        self.set()
