"""A client and a server of ours, between which the network vanishes: neither hears of it.

`python half_open.py CASE`, in a network namespace of its own. It prints what each end noticed, and
after how many seconds, as JSON; -1 for what it did not notice.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace

from kontrol.rpc.client import ANSWERS, Client
from kontrol.rpc.errors import LostRemote
from kontrol.rpc.limits import Limits
from kontrol.rpc.server import Call, Server

DEAF = 1.0  # seconds
HEARTBEAT = 600.0  # seconds: ZeroRPC notices nothing here
MOST = 12.0  # seconds to wait for what is to be noticed


class Ends:
    """A server with one call that waits, and its client."""

    def __init__(self) -> None:
        self.waits = asyncio.Event()
        self.ended = asyncio.Event()

    async def wait(self, _call: Call) -> object:
        """Wait until the caller is lost."""
        self.waits.set()
        try:
            return await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def run(self, case: str) -> dict[str, float]:
        server = Server(
            {"wait": self.wait}, limits=replace(Limits(), deaf=DEAF), heartbeat=HEARTBEAT
        )
        port = await server.bind("127.0.0.1", 0)
        serving = asyncio.create_task(server.serve())
        limits = replace(ANSWERS, deaf=DEAF)
        noticed: dict[str, float] = {}
        async with Client("127.0.0.1", port, limits=limits, heartbeat=HEARTBEAT) as client:
            waiting = asyncio.create_task(client.call("wait", timeout=60))
            await self.waits.wait()
            await ip("link", "set", "lo", "down")
            began = time.monotonic()

            async def notice(who: str, what: Awaitable[object]) -> None:
                noticed[who] = -1.0
                with suppress(TimeoutError):
                    async with asyncio.timeout(MOST):
                        with suppress(LostRemote):
                            await what
                        noticed[who] = time.monotonic() - began

            async with asyncio.TaskGroup() as group:
                if case == "sent":  # the system sends it again and again
                    sent = client.call("wait", timeout=60)
                    group.create_task(notice("sent", sent))
                group.create_task(notice("client", waiting))
                group.create_task(notice("server", self.ended.wait()))
        serving.cancel()
        await asyncio.wait([serving])
        return noticed


async def ip(*words: str) -> None:
    """Run `ip`."""
    process = await asyncio.create_subprocess_exec("ip", *words)
    assert await process.wait() == 0


async def main() -> None:
    await ip("link", "set", "lo", "up")
    print(json.dumps(await Ends().run(sys.argv[1])))


asyncio.run(main())
