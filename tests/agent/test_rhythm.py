"""Keepalives come in time, whatever commands do: agent, commands and callers share one loop."""

import asyncio
import json
from itertools import pairwise

from tests.agent.commands import called
from tests.agent.test_over_rpc import TTL, Master, Site, running

from kontrol.process.pool import Guards
from kontrol.rpc.client import Client
from kontrol.rpc.server import Call

FLOOD = "yes 0123456789abcde"
CALLERS = 6


class Clocked(Master):
    """A master that keeps when it heard."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    async def _ping(self, call: Call, raw: str) -> object:
        self.times.append(asyncio.get_running_loop().time())
        return await super()._ping(call, raw)


async def flood(client: Client, taken: asyncio.Event) -> None:
    """Read what a command writes without end, as fast as it comes."""
    async for _ in client.stream("exec", json.dumps({"cmd": FLOOD})):
        taken.set()


async def hammer(client: Client) -> None:
    """Have one short command run after another."""
    while True:
        assert await client.call("invoke", '{"cmd": "echo hi"}', timeout=20) == "hi"


async def test_no_call_delays_a_keepalive(guards: Guards) -> None:
    master = Clocked()
    async with (
        master.serving(),
        called(guards) as client,
        running(Site({"master": [master.port]}).agent()),
    ):
        await master.hears()
        taken = [asyncio.Event() for _ in range(CALLERS)]
        work = [asyncio.create_task(flood(client, event)) for event in taken]
        work.append(asyncio.create_task(hammer(client)))
        async with asyncio.timeout(20):
            await asyncio.gather(*(event.wait() for event in taken))
        master.times.clear()
        await master.hears(count=5)
        assert not any(task.done() for task in work)
        for task in work:
            task.cancel()
        await asyncio.wait(work)
    gaps = [later - earlier for earlier, later in pairwise(master.times[:5])]
    # One is due every third of the TTL, give or take jitter; an attempt may last a sixth.
    assert max(gaps) < TTL / 2
