"""Whether the pod is silent, that is whether its masters may soon treat it as lost, and its hooks.

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
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, Never, Protocol

if TYPE_CHECKING:  # an agent without hooks does not load what runs commands
    from kontrol.agent.hooks import HookRunner, HookStatus

log = logging.getLogger(__name__)

SHARE = 2 / 3
"""The part of the TTL without an acknowledgement after which a tier does not hear the pod."""

BUDGET = 1 / 5
"""The part of the TTL after which the silent hook is killed.

After `SHARE`, and with two clocks of which one is 5 percent fast and the other slow, the TTL is
not over then: it has a few percent left for the hook to start, and to be killed.
"""
_GRACE = 1 / 4  # of that, between SIGTERM and SIGKILL
_HEARD_TIMEOUT = 60.0  # seconds, of the heard hook


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


class SilenceHooks:
    """The hooks of silence: commands for what `Silence` tells.

    The silent hook does not wait for a heard one to end, and must end itself before the loss of the
    pod can be told. Without a command, the other hook is not tried again when it no longer fits.
    """

    def __init__(
        self, runner: "HookRunner", *, silent: tuple[str, ...], heard: tuple[str, ...]
    ) -> None:
        self._runner = runner
        self._silent, self._heard = silent, heard

    @property
    def statuses(self) -> "tuple[HookStatus, ...]":
        """The hooks that have run."""
        return self._runner.statuses

    async def run(self) -> Never:
        """Run them until cancelled."""
        await self._runner.run()

    def silent(self, seconds: float, ttl: float, reason: Literal["start", "lost"]) -> None:
        """Run the silent hook, in `BUDGET` of the TTL."""
        log.warning(
            "silent: no tier has acknowledged this pod for %.3f s, of a TTL of %g s", seconds, ttl
        )
        self._want("silent", self._silent, seconds, reason, timeout=BUDGET * ttl)

    def heard(self, seconds: float, reason: Literal["start", "again"]) -> None:
        """Run the heard hook."""
        if reason == "again":
            log.info("heard: acknowledged again after %.3f s", seconds)
        self._want("heard", self._heard, seconds, reason, timeout=_HEARD_TIMEOUT)

    def _want(
        self, name: str, argv: tuple[str, ...], seconds: float, reason: str, *, timeout: float
    ) -> None:
        if not argv:
            self._runner.withdraw()
            return
        from kontrol.agent.hooks import HookRequest  # it loads what runs commands

        env = {"REASON": reason, "SILENT_SECONDS": f"{seconds:.3f}"}
        self._runner.want(
            HookRequest(
                name, argv, env, timeout=timeout, grace=_GRACE * timeout, urgent=name == "silent"
            )
        )
