"""Whether the pod is silent: whether its masters may soon treat it as lost.

A pod is lost once its lease has not been refreshed for a TTL. The lease counts from no earlier than
when the last acknowledged keepalive was sent (less the `age` that an acknowledgement may state, of
a refresh that began before that keepalive came). So here, too, time counts from there, and a tier
has *heard* the pod for 2/3 of its TTL after it. The pod is *silent* while no tier hears it.

Before the first acknowledgement, time counts from the start of this process: an earlier process of
the pod may have been cut off, and its application may have to learn that.

Invariant: on one clock, a pod is silent a third of the TTL before it can be lost, whatever happens
to messages. All times are loop time, which counts suspensions (`kontrol.process.loop`).
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, Never, Protocol

SHARE = 2 / 3
"""The part of the TTL without an acknowledgement after which a tier does not hear the pod."""


class Listener(Protocol):
    """A tier, as a reporter knows it."""

    @property
    def ttl(self) -> float:
        """Its TTL, in seconds."""
        ...

    @property
    def heard(self) -> float | None:
        """The loop time from which it counts the pod's TTL, at the earliest; None: never."""
        ...


class Hearing(Protocol):
    """What is called when the pod becomes silent, or a tier hears it: `seconds` after `heard`."""

    def silent(self, seconds: float, ttl: float, reason: Literal["start", "lost"]) -> None:
        """No tier hears the pod; `ttl` is the shortest of their TTLs.

        `reason`: no tier has since the start, or one did.
        """
        ...

    def heard(self, seconds: float, reason: Literal["start", "again"]) -> None:
        """A tier hears the pod: the first time since the start, or after it was silent."""
        ...


class Silence:
    """Whether the pod is silent. Reporters call `news` with each acknowledgement."""

    def __init__(self) -> None:
        self._tiers: Sequence[Listener] = ()
        self._start = 0.0
        self._news = asyncio.Event()

    def begin(self, tiers: Sequence[Listener]) -> None:
        """Begin to count, from now."""
        self._tiers = tiers
        self._start = asyncio.get_running_loop().time()

    def news(self) -> None:
        """Note that a tier has acknowledged a keepalive."""
        self._news.set()

    def seconds(self) -> float | None:
        """Return the seconds since the last time that counts, None unless the pod is silent."""
        if not self._tiers:
            return None
        now = asyncio.get_running_loop().time()
        return now - self._last() if now >= self._due() else None

    async def watch(self, hearing: Hearing) -> Never:
        """Call `hearing` with each change, until cancelled."""
        loop = asyncio.get_running_loop()
        heard: bool | None = None
        last = self._start
        while True:
            self._news.clear()
            due, ever = self._due(), any(tier.heard is not None for tier in self._tiers)
            if loop.time() >= due:
                if heard is not False:
                    ttl = min(tier.ttl for tier in self._tiers)
                    hearing.silent(loop.time() - self._last(), ttl, "lost" if ever else "start")
                    heard, last = False, self._last()
                await self._news.wait()
                continue
            if ever and heard is not True:
                hearing.heard(loop.time() - last, "start" if heard is None else "again")
                heard = True
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._news.wait()  # which moves the time, and may bring a shorter TTL

    def _due(self) -> float:
        """Return when the pod becomes silent, or became."""
        return max(self._since(tier) + SHARE * tier.ttl for tier in self._tiers)

    def _last(self) -> float:
        return max(self._since(tier) for tier in self._tiers)

    def _since(self, tier: Listener) -> float:
        return self._start if tier.heard is None else tier.heard
