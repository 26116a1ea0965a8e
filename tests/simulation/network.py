"""The network between agents, masters and the store: late, lost and doubled messages, and cuts.

Messages travel in the world's own context: once sent they arrive whatever becomes of the sender.
So a request of a master that crashed may still be done, and one whose caller gave up may be done
later, as a proposal that etcd's leader had stuck in its log.
"""

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from random import Random
from typing import Protocol, TypeVar

from tests.simulation.history import (
    KEYS,
    STORE,
    Acknowledged,
    Deregistered,
    Entry,
    Fault,
    Fenced,
    Refusal,
    Sent,
    Unsure,
)
from tests.simulation.wire import Line
from tests.support.memory import Refresh, Request, Txn
from tests.support.simloop import SimLoop

from kontrol.agent.connection import Caller
from kontrol.rpc.errors import CallTimeout, LostRemote, RemoteError
from kontrol.store.protocol import (
    Ambiguous,
    Denied,
    NoSpace,
    Put,
    StoreError,
    TxnResult,
    Unavailable,
)

_T = TypeVar("_T")

STORE_TIMEOUT = 6.0  # seconds, as EtcdConfig.timeout
LOSS = 0.3  # of messages on a lossy link
LATE = 10.0  # seconds, the most that a late message is late
BEAT = 5.0  # seconds between heartbeats of a call
LAG = 5.0  # seconds, the most that a watch is behind while it lags
DISTANT = 0.5, 2.5  # seconds one way, to the store and back from it


class Network:
    """All links. A name is a host's: `m1`, `p2`, `etcd`."""

    def __init__(
        self, loop: SimLoop, record: Callable[[Entry], None], rng: Random, more: Random
    ) -> None:
        """`more` is drawn from for what the first schedules did not know: they stay the same."""
        self._loop = loop
        self._record = record
        self._rng = rng
        self._more = more
        self._epoch = 0  # of the store: what was sent to an earlier one never arrives
        self._faults: Counter[tuple[str, str, str]] = Counter()
        self._waiters: list[asyncio.Future[None]] = []
        self._held: dict[tuple[str, str], list[Callable[[], None]]] = {}

    def fault(self, what: str, a: str, b: str = "", *, on: bool) -> bool:
        """Begin or end a fault; faults may lie over each other. Return whether that tells."""
        fault = (what, min(a, b), max(a, b))
        before = self._faults[fault]
        self._faults[fault] += 1 if on else -1
        if bool(before) == bool(self._faults[fault]):
            return False
        self._record(Fault(self._loop.world, what, a, b, on))
        if what == "stall" and not on:
            for message in self._held.pop((min(a, b), max(a, b)), []):
                message()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        return True

    def open(self, a: str, b: str) -> bool:
        """Whether messages pass between `a` and `b`, if they are not lost."""
        cut = self._faults["cut", min(a, b), max(a, b)] > 0
        return not cut and not (STORE in (a, b) and self.down(STORE))

    def down(self, a: str) -> bool:
        return self._faults["paused", "", a] > 0

    def stalled(self, a: str, b: str) -> bool:
        """Whether messages wait on this link, and come when it goes on."""
        return self._faults["stall", min(a, b), max(a, b)] > 0

    def lossy(self, a: str, b: str) -> bool:
        return self._faults["lossy", min(a, b), max(a, b)] > 0

    def distant(self, a: str, b: str) -> bool:
        return self._faults["distant", min(a, b), max(a, b)] > 0

    def denied(self, host: str) -> bool:
        """Whether the store refuses the credentials of `host`."""
        return self._faults["denied", min(host, STORE), max(host, STORE)] > 0

    def renew(self) -> None:
        """Put another store in the place of the one there was: its connections are gone."""
        self._epoch += 1
        for ends in [ends for ends in self._held if STORE in ends]:
            del self._held[ends]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until the faults are such that `holds`."""
        while not holds():
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def send(self, a: str, b: str, arrive: Callable[[], None]) -> None:
        """Carry a message from `a` to `b`: once, later, twice (not to the store) or never."""
        if self.stalled(a, b):
            held = self._held.setdefault((min(a, b), max(a, b)), [])
            held.append(lambda: self.send(a, b, arrive))
            return
        if a == STORE and self._faults["mute", min(a, b), max(a, b)] > 0:
            return
        bad = self.lossy(a, b)
        if bad and self._rng.random() < LOSS:
            return
        twice = STORE not in (a, b) and self._rng.random() < (0.2 if bad else 0.02)
        epoch = self._epoch if STORE in (a, b) else None
        for _ in range(2 if twice else 1):
            late = bad and self._rng.random() < 0.2
            delay = self._rng.uniform(0, LATE) if late else self._rng.uniform(0.0002, 0.02)
            if self.distant(a, b):
                delay += self._more.uniform(*DISTANT)
            self._loop.call_later(
                delay,
                lambda: arrive() if self.open(a, b) and epoch in (None, self._epoch) else None,
                context=self._loop.context(""),
            )

    def latency(self, a: str, b: str) -> float:
        """Draw how long a message takes from `a` to `b`."""
        near = self._rng.uniform(0.0002, 0.02)
        return near + self._more.uniform(*DISTANT) if self.distant(a, b) else near

    def lag(self, host: str) -> float:
        """Draw how long a watch of `host` waits for what the store has for it."""
        lags = self._faults["lag", min(host, STORE), max(host, STORE)] > 0
        return self._more.uniform(0, LAG) if lags else 0.0

    def breaks(self, a: str, b: str) -> bool:
        """Draw whether a stream over this link breaks now."""
        if self.denied(a) and self._more.random() < LOSS:
            return True
        return self.lossy(a, b) and self._rng.random() < LOSS


class StoreNetwork:
    """The way of one master to the store; implements `tests.support.memory.Network`."""

    def __init__(self, network: Network, host: str, record: Callable[[Entry], None]) -> None:
        self._network = network
        self._host = host
        self._record = record

    async def call(self, request: Request, do: Callable[[], _T]) -> _T:
        """Send the request; wait for its answer for so long."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        deadline = loop.time() + STORE_TIMEOUT
        try:
            async with asyncio.timeout_at(deadline):
                await self._network.until(self._open)
        except TimeoutError:
            raise Unavailable(f"no connection to etcd for {type(request).__name__}") from None
        answer: asyncio.Future[_T] = loop.create_future()

        done = False

        def arrive() -> None:
            nonlocal done
            result: _T | Exception
            try:
                if self._network.denied(self._host) and not isinstance(request, Refresh):
                    raise Denied(f"etcd refuses the credentials of {self._host}")
                result = do()
                done = isinstance(result, TxnResult) and result.succeeded
                self._witness(loop.world, request, result)
            except (StoreError, ValueError) as error:
                result = error
                if isinstance(error, Denied | NoSpace):
                    self._record(Refusal(loop.world, self._host, type(error).__name__))
            self._network.send(STORE, self._host, lambda: _settle(answer, result))

        self._network.send(self._host, STORE, arrive)
        try:
            async with asyncio.timeout_at(deadline):
                return await answer
        except TimeoutError:
            if isinstance(request, Txn) and request.writes:
                keys = tuple(op.key for op in request.then if isinstance(op, Put))
                self._record(Unsure(loop.world, self._host, keys, done))
            raise Ambiguous(f"no answer from etcd to {type(request).__name__}") from None

    def _witness(self, at: float, request: Request, result: object) -> None:
        """Record a write that the fence of its term stopped."""
        if not isinstance(request, Txn) or not isinstance(result, TxnResult) or result.succeeded:
            return
        for compare in request.compares:
            if compare.key.startswith(KEYS.candidates) and compare.operand and result.results:
                found = result.range(0).kvs
                if not found or found[0].create_revision != compare.operand:
                    self._record(Fenced(at, self._host))

    async def deliver(self) -> bool:
        """Wait out a cut or a stall; say whether the stream broke. Raises `Denied`.

        An open stream outlives its credentials: only a new one is refused.
        """
        network = self._network
        lag = network.lag(self._host)
        if lag:
            await asyncio.sleep(lag)
        for _ in range(2):  # a cut at the beginning, or meanwhile
            if not self._open():
                await network.until(self._open)
                return self._again()
            await asyncio.sleep(network.latency(STORE, self._host))
            await network.until(lambda: not network.stalled(self._host, STORE))
        return network.breaks(self._host, STORE) and self._again()

    def _again(self) -> bool:
        if self._network.denied(self._host):
            raise Denied(f"etcd refuses the credentials of {self._host}")
        return True

    def _open(self) -> bool:
        return self._network.open(self._host, STORE)


class Endpoint(Protocol):
    """A host that answers keepalives while it is up."""

    @property
    def node(self) -> str:
        """The node of its process, empty if there is none."""
        ...

    def receive(self, frame: bytes, ip: str, reply: Callable[[bytes], None]) -> None:
        """Take a keepalive's frame, sent by `ip`; `reply` with that of the answer, if at all."""
        ...

    def follow(
        self, connection: str, have: object, about: object, reply: Callable[[object], None]
    ) -> Callable[[], None] | None:
        """Take a question for what is published; return how to give it up."""
        ...


class Wire:
    """An agent's connections to masters."""

    def __init__(
        self,
        network: Network,
        host: str,
        masters: Mapping[str, Endpoint],
        record: Callable[[Entry], None],
        *,
        deaf: float,
    ) -> None:
        """`deaf` is how many seconds the system sends what no system takes in."""
        self._network = network
        self._host = host
        self._masters = masters
        self._record = record
        self._deaf = deaf
        self._nonces: set[str] = set()
        self._opened = 0

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses of all masters, up or not."""
        await asyncio.sleep(self._network.latency(self._host, self._host))
        return list(self._masters)

    @asynccontextmanager
    async def connect(self, host: str, port: int) -> AsyncIterator[Caller]:
        """Open a connection; whether there is another side, the first call finds out."""
        ends, master = (self._host, host), self._masters[host]
        self._opened += 1
        yield _Connection(
            *(self._network, ends, master, self._record, self._nonces),
            deaf=self._deaf,
            name=f"{self._host}#{self._opened}",
        )


class _Connection:
    def __init__(
        self,
        network: Network,
        ends: tuple[str, str],
        endpoint: Endpoint,
        record: Callable[[Entry], None],
        nonces: set[str],
        *,
        deaf: float,
        name: str,
    ) -> None:
        self._network = network
        self._deaf = deaf
        self._line: Line | None = None
        self._ends = ends  # the agent's host and the master's
        self._endpoint = endpoint
        self._record = record
        self._nonces = nonces  # that are known
        self._name = name

    async def call(self, method: str, *args: object, timeout: float) -> object:
        """Send a keepalive, or a question for what is published, and wait for the answer."""
        if method == "published":
            have, about = args
            return await self._follow(have, about, timeout)
        assert method == "ping"
        (raw,) = args
        assert isinstance(raw, str)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        sent = loop.world
        answer: asyncio.Future[Mapping[str, object]] = loop.create_future()
        host, master = self._ends
        record = json.loads(raw)
        self._line = self._line or Line(f"{host}-{master}", loop.world)
        call = self._line.call(raw, loop.world)
        if record["nonce"] not in self._nonces:
            self._nonces.add(record["nonce"])
            self._record(Sent(sent, host, record["id"], record["key"], record["nonce"]))
        if record.get("down"):
            self._record(Deregistered(sent, record["id"], record["key"]))

        process = ""  # that has received it
        replied: float | None = None

        def reply(frame: bytes) -> None:
            nonlocal replied
            replied = loop.world
            self._network.send(master, host, lambda: answered(frame))

        def answered(frame: bytes) -> None:
            result = call.answered(frame, loop.world)
            if result is not None:
                _settle(answer, result)

        def arrive() -> None:
            nonlocal process
            process = process or self._endpoint.node
            self._endpoint.receive(call.frame, record["ip"], reply)

        self._network.send(host, master, arrive)
        try:
            async with asyncio.timeout(timeout):
                while not answer.done():
                    await asyncio.wait([answer], timeout=self._deaf)
                    lost = replied is not None and loop.world > replied + self._deaf
                    gone = not process or process != self._endpoint.node
                    if not answer.done() and (lost or gone or not self._network.open(*self._ends)):
                        raise LostRemote(f"the connection to {master} is broken")
                told = await answer
        except TimeoutError:
            raise CallTimeout(f"no answer from {master} in {timeout} s") from None
        except RemoteError as error:
            self._record(Refusal(loop.world, host, error.name, record["id"]))
            raise
        finally:
            answer.cancel()  # what comes later finds no caller
        if not record.get("down"):
            who = record["id"], record["key"], record["nonce"], record["n"]
            seq, ttl = told["seq"], told["ttl"]
            assert isinstance(seq, int)
            assert isinstance(ttl, int | float)
            live = None
            if "live" in record and told.get("live"):  # else it is of a version that ignores them
                live = (record["live"] or {"at": -1.0})["at"]
            self._record(Acknowledged(loop.world, sent, *who, seq, ttl, live))
        return told

    async def _follow(self, have: object, about: object, timeout: float) -> object:
        """Ask; the connection is lost if two heartbeats in a row find that nothing passes.

        And if a message was dropped on the way: TCP sends it again, or ends.
        """
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        answer: asyncio.Future[object] = loop.create_future()
        host, master = self._ends
        given_up: list[Callable[[], None]] = []
        asked, begun = False, loop.world
        replied: float | None = None

        def reply(result: object) -> None:
            nonlocal replied
            replied = loop.world
            self._network.send(master, host, lambda: _settle(answer, result))

        def arrive() -> None:
            nonlocal asked
            if not asked:  # TCP delivers once
                asked = True
                give_up = self._endpoint.follow(self._name, have, about, reply)
                given_up.extend([] if give_up is None else [give_up])

        self._network.send(host, master, arrive)
        until, missed, node = loop.time() + timeout, 0, self._endpoint.node
        try:
            while not answer.done():
                await asyncio.wait([answer], timeout=min(BEAT, until - loop.time()))
                if loop.time() >= until:
                    raise CallTimeout(f"no answer from {master} in {timeout} s")
                passes = self._network.open(host, master) and self._endpoint.node == node
                missed = 0 if passes and node and not loop.paused(node) else missed + 1
                dropped = loop.world > self._deaf + (begun if not asked else replied or math.inf)
                if (missed > 1 or dropped) and not answer.done():
                    raise LostRemote(f"no heartbeat of {master}")
            return answer.result()
        finally:
            for give_up in given_up:
                self._network.send(host, master, give_up)


def _settle(answer: "asyncio.Future[_T]", result: _T | Exception) -> None:
    """Give a caller its answer, unless it has one or gave up."""
    if answer.done():
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)
