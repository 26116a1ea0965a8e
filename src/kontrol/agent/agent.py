"""The agent of one pod: what it reports, to which tiers, and its deregistration.

The record is the pod's identity, known from the start, with what changes: the payload and the
counter `n`, raised with each change. Its nonce names this process (`kontrol.agent.schedule`). Live
facts go beside it, and change nothing of it.

Invariant: once `leave` has begun, only deregistrations are sent.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Never, Protocol

from kontrol.agent.addresses import Addresses
from kontrol.agent.live import LiveFile
from kontrol.agent.payload import PayloadFile
from kontrol.agent.reporter import Connect, Reporter, TierStatus
from kontrol.agent.schedule import Schedule, nonce
from kontrol.agent.silence import Hearing, Silence
from kontrol.ensemble.canonical import JSON, canonical
from kontrol.ensemble.pod import MAX_COUNTER, Keepalive, parse_keepalive
from kontrol.ensemble.tiers import Tier
from kontrol.resolver import Resolve

if TYPE_CHECKING:  # an agent without hooks does not load what runs commands
    from kontrol.agent.hooks import HookStatus
    from kontrol.agent.published import PublishedFile, PublishedStatus

log = logging.getLogger(__name__)

DEREGISTER_SECONDS = 2.0  # for all tiers together
LOOK = 0.1  # seconds between looks at a payload file whose changes leave no events


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """`identity` is a keepalive whose payload, nonce and n are not used. `ttl` is in seconds."""

    identity: Keepalive
    tiers: tuple[Tier, ...]
    ttl: float = 25.0
    payload: Path | None = None
    live: Path | None = None


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """How the agent is doing. `payload_error` says why the payload file is not in force.

    `silent` is the seconds since the last keepalive that a tier acknowledged was sent (or since the
    start), None unless the pod is silent. `hooks` are the hooks that have run, None without any.
    `published` is None if it keeps no published documents.
    `live_error` says why the file of live facts could not be used when it was read last.
    """

    id: str
    key: str
    nonce: str
    n: int
    payload_error: str | None
    leaving: bool
    tiers: tuple[TierStatus, ...]
    silent: float | None = None
    hooks: "tuple[HookStatus, ...] | None" = None
    published: "PublishedStatus | None" = None
    live_error: str | None = None


class Hooks(Hearing, Protocol):
    """What runs commands when the pod becomes silent, and when a tier hears it."""

    @property
    def statuses(self) -> "tuple[HookStatus, ...]":
        """The hooks that have run."""
        ...

    async def run(self) -> Never:
        """Run them until cancelled."""
        ...


class Agent:
    """Reports a pod to its tiers. `emitted` is called with each keepalive sent.

    `hooks` are for a pod that its tiers do not hear.
    `published`, if given, keeps what the tiers publish.

    Raises `BadRecord` if a master would refuse the identity.
    """

    def __init__(
        self,
        settings: AgentSettings,
        *,
        connect: Connect,
        resolve: Resolve,
        emitted: Callable[[], None] = lambda: None,
        random: Random | None = None,
        clock: Callable[[], int] = time.time_ns,
        hooks: Hooks | None = None,
        published: "PublishedFile | None" = None,
    ) -> None:
        random = random or Random()  # noqa: S311 - spreads agents in time, keeps no secret
        self._started = clock()
        self._salt = random.getrandbits(32)
        self._identity = settings.identity
        self._payload: JSON = ""
        self._n = 0
        parse_keepalive(self._encode(self._payload))
        self._file = None if settings.payload is None else PayloadFile(settings.payload)
        self._hooks = hooks
        self._silence = Silence()
        self._published = published
        self._live = None if settings.live is None else LiveFile(settings.live)
        self._reporters = tuple(
            Reporter(
                tier,
                Schedule(settings.ttl, random.random),
                Addresses(random.shuffle),
                started=self._started,
                record=self._record,
                connect=connect,
                resolve=resolve,
                emitted=emitted,
                heard=self._silence.news,
                follow=None if published is None else published.follow,
                live=settings.live is not None,
            )
            for tier in settings.tiers
        )
        self._leaving = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()
        self._deregistrations: dict[str, str | None] = {}

    @property
    def status(self) -> AgentStatus:
        """How the agent is doing now. To be read on the loop."""
        return AgentStatus(
            id=self._identity.id,
            key=self._identity.key,
            nonce=nonce(self._started, self._salt),
            n=self._n,
            payload_error=None if self._file is None else self._file.error,
            live_error=None if self._live is None else self._live.error,
            leaving=self._leaving.is_set(),
            tiers=tuple(reporter.status for reporter in self._reporters),
            silent=None if self._leaving.is_set() else self._silence.seconds(),
            hooks=None if self._hooks is None else self._hooks.statuses,
            published=None if self._published is None else self._published.status,
        )

    @property
    def acknowledged(self) -> Mapping[str, asyncio.Event]:
        """For each tier, an event that is set once it has acknowledged a keepalive."""
        return {str(reporter.tier): reporter.acknowledged for reporter in self._reporters}

    def update(self, payload: JSON) -> None:
        """Report `payload` from now on, immediately if it has changed.

        Raises `BadRecord` or `NotJSON`, and changes nothing, if a master would refuse the record.
        """
        if canonical(payload) == canonical(self._payload):  # == would take 1 for true
            return
        parse_keepalive(self._encode(payload))
        self._payload = payload
        self._n += 1
        for reporter in self._reporters:
            reporter.changed()

    async def run(self) -> None:
        """Report until `leave` is called; then deregister from every tier."""
        self._ended.clear()
        self._deregistrations = {str(r.tier): "the agent failed" for r in self._reporters}
        try:
            await self._report()
            deadline = asyncio.get_running_loop().time() + DEREGISTER_SECONDS
            async with asyncio.TaskGroup() as group:
                deregistrations = {
                    str(reporter.tier): group.create_task(reporter.deregister(deadline))
                    for reporter in self._reporters
                }
            self._deregistrations = {tier: task.result() for tier, task in deregistrations.items()}
        finally:
            self._ended.set()

    async def leave(self) -> Mapping[str, str | None]:
        """Deregister from every tier, and send nothing more until restarted.

        Returns, within `DEREGISTER_SECONDS`, None for each tier that knows it or that no keepalive
        was ever sent to, and the reason for each other one. A further call waits for the same
        deregistration.
        """
        self._leaving.set()
        await self._ended.wait()
        return self._deregistrations

    async def _report(self) -> None:
        self._silence.begin(self._reporters)
        async with asyncio.TaskGroup() as group:
            tasks = []
            if self._hooks is not None:
                tasks.append(group.create_task(self._hooks.run()))
                tasks.append(group.create_task(self._silence.watch(self._hooks)))
            if self._file is not None:  # first, so that the first keepalive has its content
                tasks.append(group.create_task(self._follow(self._file)))
            if self._published is not None:
                tasks.append(group.create_task(self._published.run()))
            tasks += [group.create_task(reporter.run()) for reporter in self._reporters]
            await self._leaving.wait()
            for task in tasks:
                task.cancel()

    async def _follow(self, file: PayloadFile) -> Never:
        from kontrol.filewatch import Watch

        with Watch(f"payload {file.path}", interval=LOOK) as watch:
            while True:
                watch.arm([file.path])  # before reading, so that no change falls between
                file.refresh(self.update)
                await watch.changed()

    def _record(self, *, skew: int, down: bool = False, live: float | None = None) -> str:
        """Return the text of the keepalive to send now, see `reporter.Record`."""
        facts = None
        if live is not None and self._live is not None:
            facts = self._live.read(asyncio.get_running_loop().time(), keep=live)
        record = replace(
            self._identity,
            payload=self._payload,
            nonce=nonce(self._started + skew, self._salt),
            n=self._n + down,  # the deregistration is newer than any record before it
            down=down,
            live=facts,
        )
        return record.encode()

    def _encode(self, payload: JSON) -> str:
        """Return the longest text of a record with `payload`: what fits now always fits."""
        longest = replace(self._identity, payload=payload, n=MAX_COUNTER, down=True)
        return replace(longest, nonce=nonce(self._started, self._salt)).encode()
