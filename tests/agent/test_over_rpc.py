"""The agent over real connections: the real ZeroRPC client and server, on loopback."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator, MutableSequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.agent.network import IDENTITY, named

from kontrol.agent.agent import Agent, AgentSettings
from kontrol.agent.connection import Caller
from kontrol.agent.control import Who, leave, serve
from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.pod import Keepalive, parse_keepalive
from kontrol.ensemble.tiers import Tier
from kontrol.resolver import Resolver
from kontrol.rpc.client import Client
from kontrol.rpc.errors import Refused
from kontrol.rpc.server import Call, Server

DEADLINE = 60.0
TTL = 3.0  # so that an attempt lasts half a second


class Master:
    """A real server that keeps what it is told; `seq` None has no etcd."""

    def __init__(self, seq: int | None = 0) -> None:
        self.seq = seq
        self.port = 0
        self.records: list[Keepalive] = []
        self._told = asyncio.Event()

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator["Master"]:
        server = Server({"ping": self._ping})
        self.port = await server.bind("127.0.0.1", port)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(server.serve())
            yield self
            task.cancel()

    async def _ping(self, call: Call, raw: str) -> object:
        self.records.append(parse_keepalive(raw))
        self._told.set()
        if self.seq is None:
            raise Refused("Unavailable", "no etcd")
        return {"seq": self.seq, "ttl": TTL, "leader": "127.0.0.1"}

    async def hears(self, payload: JSON = "", *, down: bool = False, count: int = 1) -> None:
        """Wait until `count` records with this payload have come since it was called."""
        self.records.clear()
        async with asyncio.timeout(DEADLINE):
            while sum((r.payload, r.down) == (payload, down) for r in self.records) < count:
                self._told.clear()
                await self._told.wait()


class InOrder(Random):
    """Chance, but for the order of addresses."""

    def shuffle(self, x: MutableSequence[Any]) -> None:
        """Leave it as it is."""


class Site:
    """Names and ports of masters, all on loopback: an address is the index of a port."""

    def __init__(self, names: dict[str, list[int]]) -> None:
        self.names = names

    async def resolve(self, host: str, port: int) -> list[str]:
        return [str(port) for port in self.names[host]]

    def connect(self, host: str, port: int) -> AbstractAsyncContextManager[Caller]:
        return Client("127.0.0.1", int(host))

    def agent(self, payload: Path | None = None) -> Agent:
        tiers = tuple(Tier(name, 8000) for name in self.names)
        return Agent(
            AgentSettings(named(IDENTITY), tiers, TTL, payload),
            connect=self.connect,
            resolve=self.resolve,
            random=InOrder(),
        )


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        group.create_task(agent.run())
        yield
        await agent.leave()


@pytest.fixture
def hole() -> Iterator[int]:
    """A port that accepts connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield listener.getsockname()[1]


async def free(port: int) -> None:
    """Wait until the port is closed."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                return
            writer.close()
            await writer.wait_closed()


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


async def test_a_pod_reports_changes_and_leaves(tmp_path: Path) -> None:
    path = tmp_path / "payload.json"
    async with Master(7).serving() as master:
        agent = Site({"masters": [master.port]}).agent(path)
        async with running(agent):
            await master.hears("")
            assert agent.status.n == 0
            for i in range(5):
                path.write_text(json.dumps({"i": i}), encoding="utf-8")
                await master.hears({"i": i})
            async with asyncio.timeout(DEADLINE):
                await agent.leave()
            (status,) = agent.status.tiers
            assert (status.seq, status.leader, status.error) == (7, "127.0.0.1", None)
        assert master.records[-1].down
        assert master.records[-1].payload == {"i": 4}


async def test_the_first_keepalive_has_the_payload_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "payload.json"
    path.write_text('"ready"', encoding="utf-8")
    async with Master().serving() as master:
        async with running(Site({"masters": [master.port]}).agent(path)):
            await master.hears("ready", count=2)
        assert {record.payload for record in master.records} == {"ready"}


async def test_it_goes_on_with_a_master_that_restarts() -> None:
    master = Master()
    async with master.serving():
        agent = Site({"masters": [master.port]}).agent()
        task = asyncio.create_task(agent.run())
        await master.hears()
    await free(master.port)
    async with master.serving(master.port):
        await master.hears(count=2)
        assert await agent.leave() == {"masters:8000": None}
    await task


async def test_addresses_that_are_silent_closed_or_without_etcd_are_passed_over(hole: int) -> None:
    async with Master(None).serving() as ill, Master().serving() as well:
        site = Site({"masters": [hole, closed_port(), ill.port, well.port]})
        async with running(site.agent()):
            await well.hears()
        assert well.records[-1].down


async def test_a_tier_of_silence_delays_no_other(hole: int) -> None:
    async with Master().serving() as master:
        agent = Site({"dead": [hole], "alive": [master.port]}).agent()
        async with asyncio.TaskGroup() as group:
            group.create_task(agent.run())
            await master.hears(count=3)
            dead, alive = agent.status.tiers
            assert dead.failures > 0
            assert alive.failures == 0
            loop = asyncio.get_running_loop()
            start = loop.time()
            told = await agent.leave()
            assert loop.time() - start < 2.5
        assert told["alive:8000"] is None
        assert told["dead:8000"] is not None
        assert master.records[-1].down


async def test_kontrol_leave_from_outside(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with Master().serving() as master:
        agent = Site({"masters": [master.port]}).agent()
        async with asyncio.TaskGroup() as group:
            group.create_task(agent.run())
            who = Who(agent.status.id, agent.status.key)
            control = group.create_task(serve(path, who, agent.leave))
            await master.hears()
            await asyncio.to_thread(leave, path, who)
            assert master.records[-1].down
            control.cancel()


async def test_an_address_of_loopback_with_the_real_resolver() -> None:
    async with Master().serving() as master:
        settings = AgentSettings(named(IDENTITY), (Tier("localhost", master.port),), TTL)
        connected: list[str] = []

        def connect(host: str, port: int) -> Client:
            connected.append(host)
            return Client("127.0.0.1", port)

        async with running(Agent(settings, connect=connect, resolve=Resolver())):
            await master.hears()
        assert set(connected) <= {"127.0.0.1", "::1"}
