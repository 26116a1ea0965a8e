"""The network between agents, masters and the store: late, lost and doubled messages, and cuts.

Messages travel in the world's own context: once sent they arrive whatever becomes of the sender.
So a request of a master that crashed may still be done, and one whose caller gave up may be done
later, as a proposal that etcd's leader had stuck in its log.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from random import Random
from typing import Protocol, TypeVar

from tests.simulation.history import STORE, Acknowledged, Entry, Farewell, Fault
from tests.support.simloop import SimLoop

from kontrol.agent.reporting.reporter import Caller
from kontrol.rpc.errors import CallTimeout
from kontrol.store.memory import Request
from kontrol.store.protocol import Ambiguous, StoreError, Unavailable

_T = TypeVar("_T")

STORE_TIMEOUT = 6.0  # seconds, as EtcdConfig.timeout
LOSS = 0.3  # of messages on a lossy link
LATE = 10.0  # seconds, the most that a late message is late


class Network:
    """All links. A name is a host's: `m1`, `p2`, `etcd`."""

    def __init__(self, loop: SimLoop, record: Callable[[Entry], None], rng: Random) -> None:
        self._loop = loop
        self._record = record
        self._rng = rng
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
        self._record(Fault(self._loop.time(), what, a, b, on))
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
        bad = self.lossy(a, b)
        if bad and self._rng.random() < LOSS:
            return
        twice = STORE not in (a, b) and self._rng.random() < (0.2 if bad else 0.02)
        for _ in range(2 if twice else 1):
            late = bad and self._rng.random() < 0.2
            delay = self._rng.uniform(0, LATE) if late else self._rng.uniform(0.0002, 0.02)
            self._loop.call_later(
                delay, lambda: arrive() if self.open(a, b) else None, context=self._loop.context("")
            )

    def latency(self) -> float:
        return self._rng.uniform(0.0002, 0.02)

    def breaks(self, a: str, b: str) -> bool:
        """Draw whether a stream over this link breaks now."""
        return self.lossy(a, b) and self._rng.random() < LOSS


class StoreNetwork:
    """The way of one master to the store; implements `kontrol.store.memory.Network`."""

    def __init__(self, network: Network, host: str) -> None:
        self._network = network
        self._host = host

    async def call(self, request: Request, do: Callable[[], _T]) -> _T:
        """Send the request; wait for its answer for so long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + STORE_TIMEOUT
        try:
            async with asyncio.timeout_at(deadline):
                await self._network.until(self._open)
        except TimeoutError:
            raise Unavailable(f"no connection to etcd for {type(request).__name__}") from None
        answer: asyncio.Future[_T] = loop.create_future()

        def arrive() -> None:
            try:
                result: _T | Exception = do()
            except (StoreError, ValueError) as error:
                result = error
            self._network.send(STORE, self._host, lambda: _settle(answer, result))

        self._network.send(self._host, STORE, arrive)
        try:
            async with asyncio.timeout_at(deadline):
                return await answer
        except TimeoutError:
            raise Ambiguous(f"no answer from etcd to {type(request).__name__}") from None

    async def deliver(self) -> bool:
        """Wait out a cut or a stall; say whether the stream broke."""
        network = self._network
        for _ in range(2):  # a cut at the beginning, or meanwhile
            if not self._open():
                await network.until(self._open)
                return True
            await asyncio.sleep(network.latency())
            await network.until(lambda: not network.stalled(self._host, STORE))
        return network.breaks(self._host, STORE)

    def _open(self) -> bool:
        return self._network.open(self._host, STORE)


class Endpoint(Protocol):
    """A host that answers keepalives while it is up."""

    def receive(self, raw: str, reply: Callable[[object], None]) -> None:
        """Take a keepalive; `reply` with the answer or an exception, if at all."""
        ...


class Wire:
    """An agent's connections to masters."""

    def __init__(
        self,
        network: Network,
        host: str,
        masters: Mapping[str, Endpoint],
        record: Callable[[Entry], None],
    ) -> None:
        self._network = network
        self._host = host
        self._masters = masters
        self._record = record

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses of all masters, up or not."""
        await asyncio.sleep(self._network.latency())
        return list(self._masters)

    @asynccontextmanager
    async def connect(self, host: str, port: int) -> AsyncIterator[Caller]:
        """Open a connection; like ZeroMQ's, it tells nothing about the other side."""
        yield _Connection(self._network, self._host, host, self._masters[host], self._record)


class _Connection:
    def __init__(
        self,
        network: Network,
        host: str,
        master: str,
        endpoint: Endpoint,
        record: Callable[[Entry], None],
    ) -> None:
        self._network = network
        self._ends = host, master
        self._endpoint = endpoint
        self._record = record

    async def call(self, method: str, *args: object, timeout: float) -> object:
        """Send a keepalive and wait for the answer."""
        assert method == "ping"
        (raw,) = args
        assert isinstance(raw, str)
        loop = asyncio.get_running_loop()
        sent = loop.time()
        answer: asyncio.Future[object] = loop.create_future()
        host, master = self._ends
        record = json.loads(raw)
        if record.get("down"):
            self._record(Farewell(sent, record["id"], record["key"]))

        def reply(result: object) -> None:
            self._network.send(master, host, lambda: _settle(answer, result))

        self._network.send(host, master, lambda: self._endpoint.receive(raw, reply))
        try:
            async with asyncio.timeout(timeout):
                told = await answer
        except TimeoutError:
            raise CallTimeout(f"no answer from {master} in {timeout} s") from None
        if not record.get("down"):
            assert isinstance(told, dict)
            who = record["id"], record["key"], record["nonce"], record["n"]
            self._record(Acknowledged(loop.time(), sent, *who, told["seq"]))
        return told


def _settle(answer: "asyncio.Future[_T]", result: _T | Exception) -> None:
    """Give a caller its answer, unless it has one or gave up."""
    if answer.done():
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)
