"""The methods that most tests serve, and a server and a client of ours joined by them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from tests.rpc.support import BEAT, serving

from kontrol.rpc.client import Client
from kontrol.rpc.errors import Refused
from kontrol.rpc.limits import Limits
from kontrol.rpc.server import Call, Method


class Ours:
    def __init__(self) -> None:
        self.running = 0
        self.produced = 0
        self.calls: list[Call] = []
        self.go = asyncio.Event()

    async def echo(self, call: Call, value: object) -> object:
        self.calls.append(call)
        return value

    async def many(self, _call: Call, *values: object) -> object:
        return len(values)

    async def odd(self, _call: Call) -> object:
        return object()

    async def own_cancel(self, _call: Call) -> object:
        raise asyncio.CancelledError

    async def wait(self, _call: Call) -> object:
        self.running += 1
        try:
            await self.go.wait()
        finally:
            self.running -= 1
        return "went"

    async def count(self, _call: Call, n: int) -> AsyncIterator[object]:
        self.running += 1
        try:
            for i in range(n):
                self.produced = i + 1
                yield i
        finally:
            self.running -= 1

    async def fat(self, _call: Call, n: int) -> AsyncIterator[object]:
        yield "first"
        yield "x" * n

    async def broken(self, _call: Call, n: int) -> AsyncIterator[object]:
        for i in range(n):
            yield i
        raise Refused("Broken", "no more")

    def methods(self) -> Mapping[str, Method]:
        names = ("echo", "many", "odd", "own_cancel", "wait", "count", "fat", "broken")
        return {name: getattr(self, name) for name in names}


@contextlib.asynccontextmanager
async def both(
    limits: Limits | None = None, heartbeat: float = BEAT
) -> AsyncIterator[tuple[Ours, Client]]:
    ours = Ours()
    async with (
        serving(ours.methods(), limits=limits, heartbeat=heartbeat) as port,
        Client("localhost", port, heartbeat=heartbeat) as client,
    ):
        yield ours, client
