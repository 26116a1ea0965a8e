"""What the tests of the executor share: a real server with one, and calls of it."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.process.helpers import HOLD, WAIT, Life
from tests.rpc.support import running

from kontrol.agent.executor import Bounds, Executor
from kontrol.process.pool import Guards
from kontrol.rpc.client import Client
from kontrol.rpc.errors import RemoteError
from kontrol.rpc.methods import Call
from kontrol.rpc.security.keys import Kind
from kontrol.rpc.server import Server

BOUNDS = Bounds()
ENVIRON = {"PATH": os.environ["PATH"], "KONTROL_ETCD_PASSWORD_FILE": "/secret", "PLAIN": "1"}
SECRETS = {"KONTROL_ETCD_PASSWORD_FILE"}


def executor(guards: Guards, allow: Path | None = None, bounds: Bounds = BOUNDS) -> Executor:
    """Return one that runs commands for every client."""
    return Executor(
        guards, environ=ENVIRON, secrets=SECRETS, allow=allow, insecure=True, bounds=bounds
    )


@asynccontextmanager
async def serving(
    guards: Guards, allow: Path | None = None, bounds: Bounds = BOUNDS
) -> AsyncIterator[int]:
    """Serve an executor; gives the port."""
    async with (
        executor(guards, allow, bounds) as made,
        running(Server(made.methods())) as port,
    ):
        yield port


@asynccontextmanager
async def called(
    guards: Guards, allow: Path | None = None, bounds: Bounds = BOUNDS
) -> AsyncIterator[Client]:
    """Serve an executor; gives a client of it."""
    async with serving(guards, allow, bounds) as port, Client("127.0.0.1", port) as client:
        yield client


def call(caller: Kind | None, method: str = "exec") -> Call:
    """Return a call as the server makes it, of a holder of a key."""
    return Call(method, (), "10.0.0.9#ab", caller, "1a2b3c4d" if caller else "")


async def invoke(client: Client, **members: object) -> object:
    return await client.call("invoke", json.dumps(members), timeout=WAIT)


async def exec_(client: Client, **members: object) -> list[Any]:
    return [item async for item in client.stream("exec", json.dumps(members), timeout=WAIT)]


async def refusal(client: Client, **members: object) -> str:
    with pytest.raises(RemoteError) as caught:
        await exec_(client, **members)
    return str(caught.value)


def holding(pipe: Life) -> str:
    """Return a line for the shell that goes on, with a process that hides; both hold the pipe."""
    return f"LIFE={pipe.path}; {HOLD} setsid sleep 1000 & echo up >&9; wait"


class Running:
    """An `exec` that goes on, with what it wrote."""

    def __init__(self, client: Client, cmd: str, **members: object) -> None:
        self.items: list[Any] = []
        self.task = asyncio.create_task(self._run(client, json.dumps({"cmd": cmd, **members})))

    async def _run(self, client: Client, raw: str) -> None:
        async for item in client.stream("exec", raw):
            self.items.append(item)

    async def end(self) -> None:
        """Give up, or see that it has ended."""
        self.task.cancel()
        await asyncio.wait({self.task})
