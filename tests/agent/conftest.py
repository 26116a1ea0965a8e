"""Guards that leave no process behind, a client of an executor, and a pipe that tells who lives."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.agent.commands import called
from tests.process.helpers import Life, life

from kontrol.process.pool import Guards
from kontrol.rpc.client import Client
from kontrol_common.processes import children


@pytest.fixture
async def guards() -> AsyncIterator[Guards]:
    before = set(children(os.getpid()))
    async with asyncio.timeout(150), Guards(most=16) as guards:
        yield guards
    assert set(children(os.getpid())) <= before


@pytest.fixture
async def client(guards: Guards) -> AsyncIterator[Client]:
    async with called(guards) as client:
        yield client


@pytest.fixture
async def pipe(tmp_path: Path) -> AsyncIterator[Life]:
    async with life(tmp_path) as pipe:
        yield pipe
