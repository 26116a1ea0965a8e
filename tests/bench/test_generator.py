"""The generator against a real master, and against servers that refuse, stall and end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from bench.generator import Options
from bench.load import generator
from bench.process import held_to
from bench.stage import PODS, QUIET, Stage, free_port, stage
from tests.rpc.support import running, until

from kontrol.ensemble.pod import parse_keepalive
from kontrol.rpc.errors import Refused
from kontrol.rpc.server import Call, Method, Server
from kontrol.store.etcd import EtcdConfig, EtcdStore
from kontrol.store.protocol import Range

AGENTS = 8
ACKNOWLEDGED = {"seq": 0, "ttl": 1.0, "leader": None}


class Master:
    """A server that acknowledges keepalives, once `open`; refuses the first `refusals`."""

    def __init__(self, refusals: int = 0, error: str = "Conflict") -> None:
        self.ids: list[str] = []
        self.connections: set[str] = set()
        self.open = asyncio.Event()
        self.open.set()
        self._refusals = refusals
        self._error = error

    async def ping(self, call: Call, raw: str) -> object:
        self.connections.add(call.peer)
        await self.open.wait()
        if self._refusals:
            self._refusals -= 1
            raise Refused(self._error, "for the test")
        self.ids.append(parse_keepalive(raw).id)
        return ACKNOWLEDGED

    def methods(self) -> Mapping[str, Method]:
        return {"ping": self.ping}


@contextlib.asynccontextmanager
async def serving(master: Master, host: str, port: int) -> AsyncIterator[None]:
    server = Server(master.methods())
    await server.bind(host, port)
    task = asyncio.create_task(server.serve())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def versions(here: Stage) -> int:
    """Return how often all pods' records were written."""
    async with EtcdStore(EtcdConfig((here.etcd,))) as store:
        found = await store.range(Range(PODS, prefix=True))
        return sum(kv.version for kv in found.kvs)


async def test_a_real_master_has_every_agent_and_acknowledges_what_was_sent() -> None:
    async with stage() as here:
        master = await here.master(**QUIET)
        async with generator(Options(("127.0.0.1",), here.port, AGENTS)) as load:
            joined = await load.join(under_way=3)
            assert (joined.acknowledged, joined.left) == (AGENTS, 0)
            pods = await here.pods()
            assert len(pods) == AGENTS
            same = await load.loop(under_way=3, seconds=60, count=50)
            assert same.acknowledged >= 50
            new = await load.loop(under_way=3, seconds=60, count=20, change=True)
            assert new.acknowledged >= 20
            assert await versions(here) >= AGENTS + 20
            await load.steady()
            await load.mark()
            at_rest = await load.until(within=60)
            assert at_rest.left == 0
            for got in (joined, same, new, at_rest):
                assert set(got.refused) <= {"Unavailable"}  # of a machine that stands still
                assert got.broken == 0
            assert await here.pods() == pods
        await master.end()


async def test_refusals_are_counted_by_name_and_tried_again() -> None:
    master = Master(refusals=3)
    async with (
        running(Server(master.methods())) as port,
        generator(Options(("127.0.0.1",), port, AGENTS)) as load,
    ):
        joined = await load.join(under_way=2)
    assert joined.refused == {"Conflict": 3}
    assert joined.acknowledged == len(set(master.ids)) == AGENTS


async def test_what_is_not_answered_in_the_time_of_an_attempt_is_late_and_tried_again() -> None:
    master = Master()
    master.open.clear()
    async with (
        running(Server(master.methods())) as port,
        generator(Options(("127.0.0.1",), port, AGENTS, ttl=1)) as load,
    ):
        stalled = await load.loop(under_way=AGENTS, seconds=0.5)
        assert stalled.acknowledged == 0
        assert stalled.late >= AGENTS
        master.open.set()
        assert (await load.join()).left == 0


async def test_agents_that_lose_their_master_go_to_the_other() -> None:
    port, first, second = free_port(), Master(), Master()
    options = Options(("127.0.0.1", "127.0.0.2"), port, AGENTS, ttl=1)
    async with serving(second, "127.0.0.2", port), contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(serving(first, "127.0.0.1", port))
        async with generator(options) as load:
            await load.join()
            assert len(set(first.ids)) == AGENTS
            assert second.ids == []
            await load.steady()
            await stack.aclose()
            await load.mark()
            assert (await load.until(within=60)).left == 0
    assert set(second.ids) == set(first.ids)


async def test_agents_wait_for_a_late_answer_on_the_connection_that_they_have() -> None:
    master = Master()
    async with (
        running(Server(master.methods())) as port,
        generator(Options(("127.0.0.1",), port, AGENTS, ttl=12)) as load,
    ):
        await load.join()
        master.open.clear()
        await load.steady()
        await load.mark()
        async with asyncio.timeout(60):
            while not (await load.until(within=0.2)).late:
                pass
        master.open.set()
        assert (await load.until(within=20)).left == 0
        assert len(master.connections) == AGENTS


async def test_what_is_held_to_a_share_is_stopped_and_goes_on_afterwards() -> None:
    held = await asyncio.create_subprocess_exec("sleep", "600")

    def stopped() -> bool:
        stat = Path(f"/proc/{held.pid}/stat").read_text(encoding="utf-8")
        return stat.rpartition(")")[2].split()[0] == "T"

    async with held_to(held.pid, 0.1):
        await until(stopped)
        await until(lambda: not stopped())
        await until(stopped)
    await until(lambda: not stopped())
    held.kill()
    await held.wait()
