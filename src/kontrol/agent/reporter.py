"""Reports to one tier of masters: connects, sends keepalives, retries.

There is one reporter per tier, each a task with its own connection, schedule and number, so that a
dead tier does not delay another. A reporter keeps one connection for as long as it answers. When an
attempt fails (no answer in time, a lost connection, `Unavailable`), the next one looks up the tier
again, and goes to another address if there is one.

A *late* answer is none the worse: a master that has too little CPU for all its agents gives only
such. If each of them closed its connection and began again, it would spend what it has on
handshakes, and on keepalives that no agent waits for any more. So a connection without an answer is
kept open beside the next attempt, and its address is not tried again for a while
(`Schedule.timeout`): one keepalive per address is all that waits. The first acknowledgement counts.
Once one is in time, the other connections are closed. It proves that the pod's lease was refreshed
after the keepalive was *sent*, so the next one is due by that time. A connection whose other end
does not even take in what is sent ends by itself, see `kontrol.rpc.sockets`.

A *refusal* is an answer: the connection works, the record is not accepted. It is logged and
retried, since each reason can pass: the incumbent of a `Conflict` leaves, an invalid payload is
fixed.

Live facts go to masters that say, with each acknowledgement, that they take them: to an older one
they would be a part of the record. So the first keepalive of a connection is without, and the
second follows soon.

Invariant: each keepalive is made when it is sent, and none is sent on a connection on which one
waits. An acknowledgement of another record than the present one is followed by that immediately.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Never, Protocol

from kontrol.agent.addresses import Addresses
from kontrol.agent.connection import Caller, Connections, MasterConnection, is_refusal, reason
from kontrol.agent.schedule import LONGEST_SKEW, MAX_TTL, SECOND, Schedule, skew_past
from kontrol.ensemble.live import without_live
from kontrol.ensemble.tiers import Tier
from kontrol.resolver import Resolve
from kontrol.rpc.errors import RemoteError, RpcError

log = logging.getLogger(__name__)

_DEREGISTER_ATTEMPT = 0.8  # seconds: two and a half attempts within `DEREGISTER_SECONDS`
_DEREGISTER_PAUSE = 0.05


class Record(Protocol):
    """Makes the JSON text to send now."""

    def __call__(self, *, skew: int, down: bool = False, live: float | None = None) -> str:
        """Return the record, its nonce `skew` nanoseconds ahead; `down`: the deregistration.

        With live facts, if there is a file of them, unless `live` is None: then the master would
        take them for a part of the record. They may be `live` seconds old.
        """
        ...


class Follow(Protocol):
    """Uses an open connection besides, for what masters publish."""

    def __call__(self, tier: str, caller: Caller, *, pause: float) -> Coroutine[Any, Any, Never]:
        """Use it until cancelled. Raises `LostRemote`. `pause` is about a third of the TTL."""
        ...


Connect = Callable[[str, int], AbstractAsyncContextManager[Caller]]


@dataclass(frozen=True, slots=True)
class TierStatus:
    """How one tier is doing.

    `acknowledged` is the seconds since that keepalive was sent which was last acknowledged: the
    pod's lease was refreshed after that. `failures` are those in a row. Of all keepalives since the
    start, `sent` counts those sent, `accepted` those acknowledged, `refused` those that the tier
    answered with a refusal, and `failed` the attempts without an answer; `round_trips` is the sum
    of the seconds of those accepted.
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
    `emitted` is called with each keepalive sent, `heard` with each acknowledgement. `follow` is
    what else the connection is for. `live`: there is a file of live facts.
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
        live: bool = False,
    ) -> None:
        self.tier = tier
        self._live = live
        self._schedule = schedule
        self._addresses = addresses
        self._started = started
        self._record = record
        self._connect = connect
        self._resolve = resolve
        self._emitted = emitted
        self._heard = heard
        self._follow = follow
        self.acknowledged = asyncio.Event()
        """Set once the tier has acknowledged a keepalive of ours."""
        self.heard: float | None = None
        """The loop time from which the tier counts the pod's TTL, at the earliest; None: never."""
        self._changed = asyncio.Event()
        self._connections = Connections()
        self._address: str | None = None
        self._sent = self._accepted = self._refusals = self._failures = 0
        self._round_trips = 0.0
        self._acknowledged: float | None = None  # loop time at which what it was for was sent
        self._began = 0.0  # loop time
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
        self._began = asyncio.get_running_loop().time()
        try:
            answered = await self._attempt()
            while True:
                if answered is not None:
                    await self._session(answered)
                answered = await self._pause() or await self._attempt()
        finally:
            await self._connections.close(*self._connections)

    async def _attempt(self) -> MasterConnection | None:
        """Send a keepalive to the address whose turn it is.

        Returns the connection that was answered first, which may be an earlier one; None if the
        attempt failed.
        """
        deadline = asyncio.get_running_loop().time() + self._schedule.attempt
        try:
            await self._addresses.look_up(self._resolve, self.tier, self._schedule.attempt / 2)
        except OSError as error:
            self._failed(reason(error))
            return None
        while (connection := await self._choose()) is None:
            until = min(other.until for other in self._connections)
            if (answered := await self._answered_by(until, or_lost=True)) is not None:
                return answered
            deadline = asyncio.get_running_loop().time() + self._schedule.attempt
        self._send(connection)
        return await self._answered_by(deadline, connection)

    async def _session(self, connection: MasterConnection) -> None:
        """Report over a connection that was answered, until an attempt fails."""
        answered: MasterConnection | None = connection
        while answered is not None:
            others = [each for each in self._connections if each is not answered]
            if answered.sent + self._schedule.attempt >= asyncio.get_running_loop().time():
                await self._connections.close(*others)
            for other in others:
                await other.unfollow()
            delay = self._read(answered)
            self._begin_to_follow(answered)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._changed.wait()
            if (error := answered.lost) is not None:  # there may be news at another master
                await self._connections.close(answered)
                self._failed(reason(error))
                return
            self._send(answered)
            answered = await self._answered_by(answered.sent + self._schedule.attempt, answered)

    def _begin_to_follow(self, connection: MasterConnection) -> None:
        """Follow what is published, until the connection is closed."""
        if self._follow is None or connection.caller is None or connection.follower is not None:
            return
        pause = self._schedule.ttl / 3
        following = self._follow(str(self.tier), connection.caller, pause=pause)
        connection.follower = task = asyncio.create_task(following)
        task.add_done_callback(self._followed)

    def _followed(self, task: "asyncio.Task[Never]") -> None:
        """Wake the session of a connection that is over."""
        if not task.cancelled():
            self._changed.set()

    async def _pause(self) -> MasterConnection | None:
        """Wait after a failed attempt; return a connection that is answered meanwhile."""
        now = asyncio.get_running_loop().time()
        return await self._answered_by(now + self._schedule.failed())

    async def _answered_by(
        self,
        deadline: float,
        newest: MasterConnection | None = None,
        *,
        or_lost: bool = False,
    ) -> MasterConnection | None:
        """Wait for an acknowledgement or a refusal; return the connection on which it came.

        None: there is none by `deadline`, the attempt on `newest` has failed, or, with `or_lost`,
        one on any connection has.
        """
        loop = asyncio.get_running_loop()
        while True:
            left = max(0.0, deadline - loop.time())
            answers = [each.answer for each in self._connections if each.answer is not None]
            if answers:
                await asyncio.wait(answers, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(left)
            for each in self._connections.answers(self._acknowledged):
                error = await self._connections.why_failed(each)
                if error is None:
                    return each
                if each is newest:
                    self._failed(reason(error))
                if or_lost or each is newest:
                    return None
            if loop.time() >= deadline:
                if newest is not None:
                    self._failed(reason(TimeoutError()))
                return None

    async def _choose(self) -> MasterConnection | None:
        """Return a connection to the address whose turn it is; None if all are waited for."""
        address = self._addresses.choose(self._connections.waited_for())
        if address is None:
            return None
        return await self._connections.to(address, lambda: self._connect(address, self.tier.port))

    def _send(self, connection: MasterConnection) -> None:
        """Send a keepalive."""
        now = asyncio.get_running_loop().time()
        since = now - (self._began if self._acknowledged is None else self._acknowledged)
        self._address = connection.address
        self._changed.clear()
        self._sent += 1
        self._emitted()
        live = self._schedule.ttl / 2 if self._live and connection.takes_live else None
        raw = self._record(skew=self._skew, live=live)
        connection.send(raw, self._sent, self._schedule.timeout(since))

    def _read(self, connection: MasterConnection) -> float:
        """Take an acknowledgement or a refusal; return the seconds until the next is due."""
        self._address = connection.address
        newest = connection.number == self._sent
        try:
            answer = connection.read()
        except RemoteError as refusal:
            self._refused(refusal, newest=newest)
            return self._schedule.failed()
        now = asyncio.get_running_loop().time()
        self._accepted += 1
        self._round_trips += now - connection.sent
        delay = self._accept(answer, connection.sent)
        if not newest and without_live(connection.raw) != self._record(skew=self._skew):
            return 0.0
        takes_live = isinstance(answer, dict) and answer.get("live") is True
        if self._live and takes_live and not connection.takes_live:
            delay = min(delay, self._schedule.soon())
        connection.takes_live = takes_live
        return max(0.0, connection.sent + delay - now)

    def _accept(self, answer: object, sent: float) -> float:
        """Read an acknowledgement; the original's masters answer nothing. Returns the delay."""
        fields = answer if isinstance(answer, dict) else {}
        seq = fields["seq"] if isinstance(fields.get("seq"), int) else None
        known, failures = self._acknowledged is not None, self._schedule.failures
        news = not known or self._error is not None or seq != self._seq
        self._seq = seq
        self._leader = fields["leader"] if isinstance(fields.get("leader"), str) else None
        self._error = None
        self._acknowledged = sent
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

    def _refused(self, refusal: RemoteError, *, newest: bool) -> None:
        self._refusals += 1
        self._error = reason(refusal)
        log.warning("tier %s refuses the keepalive: %s", self.tier, self._error)
        if not newest:
            return  # it was for an earlier record
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

    def _failed(self, why: str) -> None:
        self._failures += 1
        self._error = why
        if self._address is None:
            log.warning("tier %s: keepalive failed: %s", self.tier, why)
        else:
            log.warning("tier %s: keepalive to %s failed: %s", self.tier, self._address, why)
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
                    await self._addresses.look_up(self._resolve, self.tier, _DEREGISTER_ATTEMPT / 4)
                self._address = self._addresses.choose()
                assert self._address is not None  # noqa: S101 - the look-up found one, or raised
                async with self._connect(self._address, self.tier.port) as caller:
                    self._sent += 1
                    self._emitted()
                    await caller.call("ping", raw, timeout=_DEREGISTER_ATTEMPT)
            self._error = None
        except (RpcError, OSError) as error:
            if not is_refusal(error):
                self._failed(reason(error))
                # Also where the connection is refused immediately.
                await asyncio.sleep(_DEREGISTER_PAUSE)
                return False
            self._error = None if error.name == "Gone" else reason(error)
        return True
