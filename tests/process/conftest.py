"""A guard, and a pipe that tells who lives."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.process.helpers import Life, life

from kontrol.process.guard import Guard
from kontrol_common.processes import children


@pytest.fixture
async def guard() -> AsyncIterator[Guard]:
    async with asyncio.timeout(150), Guard() as guard:
        yield guard
        if guard.pid is not None:
            assert children(guard.pid) == []


@pytest.fixture
async def pipe(tmp_path: Path) -> AsyncIterator[Life]:
    async with life(tmp_path) as pipe:
        yield pipe
