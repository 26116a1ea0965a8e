"""Reports to one tier of masters: connects, sends keepalives, retries.

There is one reporter per tier, each a task with its own connection, schedule and number, so that a
dead tier does not delay another. A reporter keeps one connection for as long as it answers. When an
attempt fails (a timeout, a lost connection, `Unavailable`), the next one looks up the tier again
and opens a new connection, to another address if there is one: on a connection whose packets are
dropped, TCP would take a quarter of an hour to give up.

A *refusal* is an answer: the connection works, the record is not accepted. It is logged and
retried, since each reason can pass: the incumbent of a `Conflict` leaves, an invalid payload is
fixed.

Invariant: one keepalive is under way at a time, and each is made when it is sent. So a tier gets
records in the order of their (nonce, n), and the last one it acknowledged is the newest sent.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any, Never, Protocol, TypeGuard

from kontrol.agent.addresses import Addresses
from kontrol.agent.schedule import LONGEST_SKEW, MAX_TTL, SECOND, Schedule, skew_past
from kontrol.ensemble.tiers import Tier
from kontrol.resolver import Resolve
from kontrol.rpc.errors import RemoteError, RpcError

log = logging.getLogger(__name__)

_DEREGISTER_ATTEMPT = 0.8  # seconds: two and a half attempts within `DEREGISTER_SECONDS`
_DEREGISTER_PAUSE = 0.05
_LONGEST_REASON = 300  # characters: the text is a peer's
_REFUSALS = frozenset(
    {
        *("InvalidRecord", "Conflict", "Stale", "Gone", "NotWritten"),
        *("TooManyPods", "TooManyBytes", "TooManyJoins"),
    }
)


class Caller(Protocol):
    """An open connection to a master."""

    async def call(self, method: str, *args: object, timeout: float) -> object:
        """Call and return the answer. Raises `RpcError`, within `timeout` seconds."""
        ...


class Record(Protocol):
    """Makes the JSON text to send now."""

    def __call__(self, *, skew: int, down: bool = False) -> str:
        """Return the record, its nonce `skew` nanoseconds ahead; `down`: the deregistration."""
        ...


class Follow(Protocol):
    """Uses an open connection besides, for what masters publish."""

    def __call__(self, tier: str, caller: Caller, *, pause: float) -> Coroutine[Any, Any, Never]:
        """Use it until cancelled. Raises `LostRemote`. `pause` is about a third of the TTL."""
        ...


Connect = Callable[[str, int], AbstractAsyncContextManager[Caller]]


@dataclass(frozen=True, slots=True)
class TierStatus:
    """How one tier is doing. `acknowledged` is the seconds since the last acknowledgement.

    `failures` are those in a row. Of all keepalives since the start, `sent` counts those sent,
    `accepted` those acknowledged, `refused` those that the tier answered with a refusal, and
    `failed` the attempts without an answer; `round_trips` is the sum of the seconds of those
    accepted.
    """

    tier: str
    address: str | None
    seq: int | None
    leader: str | None
    ttl: float
    acknowledged: float | None
    failures: int
    error: str | None
    sent: int = 0
    accepted: int = 0
    refused: int = 0
    failed: int = 0
    round_trips: float = 0.0


class Reporter:
    """Reports to `tier`.

    `started` is when the process did, in nanoseconds of the wall clock: the time in its nonce.
    `emitted` is called with each keepalive sent, `heard` with each acknowledgement.
    `emitted` is called with each keepalive sent. `follow` is what else the connection is for.
    """

    def __init__(
        self,
        tier: Tier,
        schedule: Schedule,
        addresses: Addresses,
        *,
        started: int,
        record: Record,
        connect: Connect,
        resolve: Resolve,
        emitted: Callable[[], None],
        heard: Callable[[], None],
        follow: "Follow | None" = None,
    ) -> None:
        self.tier = tier
        self._schedule = schedule
        self._addresses = addresses
        self._started = started
        self._record = record
        self._connect = connect
        self._resolve = resolve
        self._emitted = emitted
        self._heard = heard
        self._follow = follow
        self._found: dict[str, list[str]] = {}  # the addresses of each name, as last found
        self.acknowledged = asyncio.Event()
        """Set once the tier has acknowledged a keepalive of ours."""
        self.heard: float | None = None
        """The loop time from which the tier counts the pod's TTL, at the earliest; None: never."""
        self._changed = asyncio.Event()
        self._address: str | None = None
        self._sent = self._accepted = self._refusals = self._failures = 0
        self._round_trips = 0.0
        self._acknowledged: float | None = None  # loop time
        self._skew = 0  # nanoseconds
        self._seq: int | None = None
        self._leader: str | None = None
        self._error: str | None = None

    @property
    def ttl(self) -> float:
        """The TTL of the tier in seconds, as last received."""
        return self._schedule.ttl

    def changed(self) -> None:
        """Send immediately, unless the tier is failing and the next attempt is not due yet."""
        self._changed.set()

    @property
    def status(self) -> TierStatus:
        """How the tier is doing now."""
        at = self._acknowledged
        return TierStatus(
            tier=str(self.tier),
            address=self._address,
            seq=self._seq,
            leader=self._leader,
            ttl=self._schedule.ttl,
            acknowledged=None if at is None else asyncio.get_running_loop().time() - at,
            failures=self._schedule.failures,
            error=self._error,
            sent=self._sent,
            accepted=self._accepted,
            refused=self._refusals,
            failed=self._failures,
            round_trips=self._round_trips,
        )

    async def run(self) -> Never:
        """Report until cancelled."""
        while True:
            try:
                await self._session()
            except (RpcError, OSError) as error:
                self._failed(_reason(error))
            await asyncio.sleep(self._schedule.failed())

    async def _session(self) -> Never:
        """Report over one connection until an attempt fails."""
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(self._schedule.attempt):
                await self._look_up(self._schedule.attempt / 2)
                caller = await stack.enter_async_context(self._open())
                delay = await self._exchange(caller)
            follower = self._begin_to_follow(caller, stack)
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._changed.wait()
                if follower is not None and follower.done():
                    follower.result()  # the connection is over: there may be news at another one
                async with asyncio.timeout(self._schedule.attempt):
                    delay = await self._exchange(caller)

    def _begin_to_follow(
        self, caller: Caller, stack: AsyncExitStack
    ) -> "asyncio.Task[Never] | None":
        """Follow what is published, until the `stack` ends."""
        if self._follow is None:
            return None
        pause = self._schedule.ttl / 3
        task = asyncio.create_task(self._follow(str(self.tier), caller, pause=pause))
        task.add_done_callback(lambda _: self._changed.set())
        stack.push_async_callback(_end, task)
        return task

    async def _look_up(self, timeout: float) -> None:
        """Look up all names of the tier together, for at most `timeout` seconds.

        For a name that is not found in time, the addresses found before are used. Raises `OSError`
        if there is no address.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._find(host, timeout)) for host in self.tier.hosts]
        self._addresses.learn(chain.from_iterable(self._found.values()))
        if not self._addresses:
            failures = [failure for task in tasks if (failure := task.result()) is not None]
            raise failures[0] if failures else OSError("the look-up found no address")

    async def _find(self, host: str, timeout: float) -> OSError | None:
        """Look up one name; return the error, if any."""
        try:
            async with asyncio.timeout(timeout):
                self._found[host] = await self._resolve(host, self.tier.port)
        except OSError as error:
            log.warning("tier %s: look-up of %s failed: %s", self.tier, host, _reason(error))
            return error
        return None

    def _open(self) -> AbstractAsyncContextManager[Caller]:
        """Return a new connection, to the address whose turn it is."""
        self._address = self._addresses.choose()
        return self._connect(self._address, self.tier.port)

    async def _exchange(self, caller: Caller) -> float:
        """Send one keepalive; return the seconds until the next one is due."""
        loop = asyncio.get_running_loop()
        self._changed.clear()
        raw = self._record(skew=self._skew)
        started = loop.time()
        self._sent += 1
        self._emitted()
        try:
            answer = await caller.call("ping", raw, timeout=self._schedule.attempt)
        except RemoteError as refusal:
            if not _is_refusal(refusal):
                raise
            self._refused(refusal)
            return self._schedule.failed()
        self._accepted += 1
        self._round_trips += loop.time() - started
        delay = self._accept(answer, started)
        return max(0.0, started + delay - loop.time())

    def _accept(self, answer: object, sent: float) -> float:
        """Read an acknowledgement; the original's masters answer nothing. Returns the delay."""
        fields = answer if isinstance(answer, dict) else {}
        seq = fields["seq"] if isinstance(fields.get("seq"), int) else None
        known, failures = self._acknowledged is not None, self._schedule.failures
        news = not known or self._error is not None or seq != self._seq
        self._seq = seq
        self._leader = fields["leader"] if isinstance(fields.get("leader"), str) else None
        self._error = None
        self._acknowledged = asyncio.get_running_loop().time()
        self.acknowledged.set()
        if news:
            number = "" if self._seq is None else f" as #{self._seq}"
            # A recovery says so: the log would suppress the same words as at the start.
            again = f" again; failed attempts: {failures}" if failures and known else ""
            log.info("tier %s: reporting to %s%s%s", self.tier, self._address, number, again)
        delay = self._schedule.acknowledged(fields.get("ttl"))
        age = fields.get("age")
        self.heard = sent - (min(age, MAX_TTL) if isinstance(age, int | float) and age > 0 else 0)
        self._heard()
        return delay

    def _refused(self, refusal: RemoteError) -> None:
        self._refusals += 1
        self._error = _reason(refusal)
        log.warning("tier %s refuses the keepalive: %s", self.tier, self._error)
        if refusal.name == "Gone":
            # This process has not deregistered; another sender did so under its nonce.
            self._skew += 1
        elif refusal.name == "Stale" and self._acknowledged is None:
            # No newer process has replaced this one: the clock was set back. A process that was
            # acknowledged gives way: otherwise two would outbid each other without end.
            self._put_ahead(refusal.message)

    def _put_ahead(self, message: str) -> None:
        skew = skew_past(message, self._started, self._skew)
        if skew is None:
            log.error(
                "tier %s: its record of this pod has a nonce that is %d years or more ahead of this"
                " process, or of another form: keepalives are refused until that record is gone",
                self.tier,
                LONGEST_SKEW // SECOND // (365 * 24 * 3600),
            )
            return
        self._skew = skew
        log.warning(
            "tier %s: the clock of this host seems to have been set back: the nonce moves %.9g s"
            " ahead",
            self.tier,
            skew / SECOND,
        )

    def _failed(self, reason: str) -> None:
        self._failures += 1
        self._error = reason
        if self._address is None:
            log.warning("tier %s: keepalive failed: %s", self.tier, reason)
        else:
            log.warning("tier %s: keepalive to %s failed: %s", self.tier, self._address, reason)
            self._addresses.failed(self._address)
        self._address = None

    async def deregister(self, deadline: float) -> str | None:
        """Deregister the pod from the tier; retry until it answers or loop time is `deadline`.

        Call it when `run` has ended. Returns None if the tier knows, or if no keepalive was ever
        sent to it; else the error.
        """
        if not self._sent:
            return None
        raw = self._record(skew=self._skew, down=True)
        self._error = "no answer in time"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while not await self._try_to_deregister(raw):
                    pass
        if self._error is not None:
            log.warning("tier %s did not accept the deregistration: %s", self.tier, self._error)
        return self._error

    async def _try_to_deregister(self, raw: str) -> bool:
        """Send one deregistration over a new connection; tell whether the tier has answered."""
        try:
            async with asyncio.timeout(_DEREGISTER_ATTEMPT):
                if self._address is None:
                    await self._look_up(_DEREGISTER_ATTEMPT / 4)
                async with self._open() as caller:
                    self._sent += 1
                    self._emitted()
                    await caller.call("ping", raw, timeout=_DEREGISTER_ATTEMPT)
            self._error = None
        except (RpcError, OSError) as error:
            if not _is_refusal(error):
                self._failed(_reason(error))
                await asyncio.sleep(
                    _DEREGISTER_PAUSE
                )  # also after an immediate refusal of the connection
                return False
            self._error = None if error.name == "Gone" else _reason(error)
        return True


async def _end(task: "asyncio.Task[Never]") -> None:
    task.cancel()
    await asyncio.wait([task])


def _is_refusal(error: Exception) -> TypeGuard[RemoteError]:
    return isinstance(error, RemoteError) and error.name in _REFUSALS


def _reason(error: Exception) -> str:
    if isinstance(error, RemoteError):
        return f"{error.name}: {error.message}"[:_LONGEST_REASON]
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
