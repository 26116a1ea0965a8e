"""The master: mirror, registry, election and leader over one store, as one thing to run.

Every master accepts keepalives; one of them leads. Its methods may be called while `run` is
running.
"""

import asyncio
import json
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from kontrol import __version__
from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.holds import Damper
from kontrol.ensemble.urgent import Urgent
from kontrol.master.desired import DesiredState
from kontrol.master.election import Election
from kontrol.master.highwater import HighWater
from kontrol.master.leader.counts import Counts
from kontrol.master.leader.execution import CurrentCallback, Runner
from kontrol.master.leader.leader import Leader
from kontrol.master.leader.parts import Host, LeaderConfig, Tier
from kontrol.master.leader.requests import Requests
from kontrol.master.mirror import Mirror
from kontrol.master.operator.notices import Notices
from kontrol.master.operator.problems import of_the_published, of_the_senders
from kontrol.master.operator.story import Problem
from kontrol.master.publications import Publications
from kontrol.master.records.keys import Keys
from kontrol.master.records.masters import Candidate
from kontrol.master.records.records import Records
from kontrol.master.registry.quota import Bounds
from kontrol.master.registry.registry import Registry
from kontrol.master.watchcache import share_restores
from kontrol.store.protocol import Range, Store

log = logging.getLogger(__name__)

_DAY = 86400.0  # seconds, the longest setting


@dataclass(frozen=True, slots=True)
class MasterConfig:
    """The configuration of a master and its tier. Times in seconds, `brake` in percent.

    `port`, at `address`, is where it accepts keepalives; None leaves it out of its candidacy.
    `sweep_every`, `sweep_age`, `every` and `urgent` are as in `LeaderConfig`; `bounds` are what the
    tier may store.
    """

    namespace: str
    app: str
    id: str
    address: str
    port: int | None = None
    ttl: float = 25.0
    fover: float = 15.0
    damper: float = 10.0
    damper_max: float = 60.0
    brake: float = 50.0
    sweep_every: float = 3600.0
    sweep_age: float = 24 * 3600.0
    bounds: Bounds = field(default_factory=Bounds)
    every: float | None = None
    urgent: Urgent = field(default_factory=Urgent)


class Master:
    """One master of a tier."""

    def __init__(
        self,
        store: Store,
        config: MasterConfig,
        *,
        runner: Runner | None,
        boot_clock: Callable[[], float],
        wall: Callable[[], str],
        rng: random.Random,
        emit: Callable[[str], None] = lambda _name: None,
    ) -> None:
        """Without a `runner` the ensemble is kept and nothing is run.

        `boot_clock` returns seconds that go on while the machine sleeps, `wall` the date and time
        as RFC 3339; `rng` is for jitter. `emit` is called with the name of each of the original's
        counters that moves: `lock_obtained`, `md5_changed`, `callback_invoked`.
        """
        self.config = config
        self.counts = Counts(lambda: datetime.fromisoformat(wall()).timestamp(), emit)
        self._store = store
        self.records = records = Records(Keys.of(config.namespace, config.app))
        self.keys = records.keys
        self._callback = CurrentCallback(runner)
        damper = Damper(config.damper, config.damper_max)
        self.mirror = Mirror(store, records, ttl=config.ttl, damper=damper)
        self._highwater = HighWater(store, records, silence=config.ttl)
        self.election = Election(
            store,
            records,
            fover=config.fover,
            candidate=self._candidate,
            highwater=self._highwater,
            clock=boot_clock,
        )
        self._leader: Candidate | None = None
        self._ttl = config.ttl
        self.election.on_change(self._follow_leader)
        self.registry = Registry(
            store,
            records,
            self.mirror,
            ttl=lambda: self._ttl,
            ttl_known=self.election.followed.is_set,
            leader=lambda: self.leader_id,
            bounds=config.bounds,
        )
        self.ping = self.registry.ping
        self.notices = Notices(
            store,
            self.keys,
            master=config.id,
            news=self.registry.news,
            seen=self._seen,
        )
        self.requests = Requests(store, records, silence=config.fover, wall=wall)
        self.desired = DesiredState(
            store, records, master=config.id, silence=config.ttl, wall=wall, rng=rng
        )
        self._callback.on_change(self.election.described)
        self.publications = Publications(
            store,
            records,
            self._highwater,
            silence=config.ttl,
            news=self.registry.news,
        )
        self.leader = Leader(
            Tier(
                store,
                records,
                self.mirror,
                self.election,
                self.requests,
                self._highwater,
                self.desired,
            ),
            self._callback,
            LeaderConfig(
                config.ttl,
                config.fover,
                config.brake,
                config.sweep_every,
                config.sweep_age,
                config.bounds.pods,
                config.every,
                config.urgent,
            ),
            counts=self.counts,
            host=Host(boot_clock, wall, rng),
        )
        self.publications.on_claim(self._ahead)
        self.mirror.cache.on_restore(self.election.restart)
        self._highwater.cache.on_restore(self.election.restart)
        share_restores(
            self.mirror.cache,
            self._highwater.cache,
            self.election.cache,
            self.requests.cache,
            self.desired.cache,
            self.publications.cache,
        )

    async def run(self) -> None:
        """Be a master until cancelled; then stop the callback, record its run, and resign."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.mirror.cache.run())
            group.create_task(self.election.follow())
            group.create_task(self.registry.run())
            group.create_task(self.requests.run())
            group.create_task(self.desired.cache.run())
            group.create_task(self.notices.run())
            group.create_task(self._highwater.cache.run())
            group.create_task(self.publications.cache.run())
            group.create_task(self._callback.follow())
            await self.election.run(self.leader.lead)

    async def answerable(self) -> None:
        """Wait until this master knows the pods and the leader."""
        await self.mirror.cache.complete.wait()
        await self.election.followed.wait()

    def _seen(self) -> list[Problem]:
        """Return the problems that this master sees with what reports to it."""
        registry = self.registry
        limited = registry.quota.limited(asyncio.get_running_loop().time())
        found = of_the_senders(registry.senders.conflicts(), registry.senders.flips(), limited)
        return found + self.behind()

    def behind(self) -> list[Problem]:
        """Return the problem that pods which this master serves lack what is published, if so."""
        late = self.publications.behind()
        names = {pod.key: pod.id for pod in self.mirror.ensemble} if late else {}
        version = self.publications.current.version
        pods = [
            (names.get(each.pod, each.pod or "an unknown pod"), each.version, each.error)
            for each in late
        ]
        return of_the_published(version, pods)

    @property
    def leader_id(self) -> str | None:
        """The id of the leader, None while there is none."""
        return None if self._leader is None else self._leader.id

    @property
    def ttl(self) -> float:
        """The tier's TTL in seconds: the leader's, as last known; that of this master before."""
        return self._ttl

    @property
    def candidates(self) -> list[Candidate]:
        """The candidates, the leader first."""
        return [self.records.candidate(kv) for kv in self.election.candidates]

    @property
    def leader_record(self) -> dict[str, JSON] | None:
        """The leader's candidacy: `id`, `address`, `fingerprint`, and `term` once it leads."""
        candidates = self.candidates
        return candidates[0].known() if candidates else None

    def pods(self) -> list[dict[str, JSON]]:
        """The ordered pods, as the callback sees them."""
        return [pod.public() for pod in self.mirror.ensemble]

    async def pods_with_facts(self) -> list[dict[str, JSON]]:
        """The same with their live facts, as the store has them now. Raises `StoreError`."""
        kvs = (await self._store.range(Range(self.keys.live, prefix=True))).kvs
        facts = self.records.live_facts(kvs)
        return [
            found.beside(pod) if (found := facts.get(pod.key)) and found.of(pod) else pod.public()
            for pod in self.mirror.ensemble
        ]

    async def state(self) -> JSON:
        """The state that the callback returned last. Raises `StoreError`."""
        kvs = (await self._store.range(Range(self.keys.state))).kvs
        state = self.records.state(kvs[0]) if kvs else None
        return None if state is None else json.loads(state)

    def _follow_leader(self) -> None:
        """Notice which master leads, and its TTL, which is the tier's."""
        candidates = self.election.candidates
        leader = self._leader = self.records.candidate(candidates[0]) if candidates else None
        if leader is None:
            return
        theirs = leader.ttl  # None from masters of an earlier version
        ttl = theirs if theirs is not None and 2 <= theirs <= _DAY else self.config.ttl
        if ttl != self._ttl:
            log.info(
                "the TTL is now %g s, as the leader %s has it, after %g", ttl, leader.id, self._ttl
            )
            self._ttl = ttl
            self.mirror.set_ttl(ttl)

    def _ahead(self) -> None:
        """A pod has a later version than the store, or not any more: the leader is to know."""
        self.election.described()
        self.leader.wake()

    def _candidate(self) -> Candidate:
        config = self.config
        return Candidate(
            id=config.id,
            address=config.address,
            fingerprint=self._callback.fingerprint,
            version=__version__,
            ttl=config.ttl,
            fover=config.fover,
            damper=config.damper,
            port=config.port,
            published=self.publications.ahead,
        )
