"""The Redis ensemble of `examples/redis`: real servers, each in a network namespace of its own."""

import tempfile
from pathlib import Path

import pytest
from bench.network import network
from bench.redis import fail_over
from bench.redis_tiers import kontrol

pytestmark = pytest.mark.privileged("redis-server", "redis-cli")


async def test_a_primary_that_is_killed_and_one_that_is_cut_off() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with network(3, 3) as net, kontrol(Path(folder), net) as ensemble:
            for fault in ("kill", "cut"):
                found = await fail_over(ensemble, fault, fault, away=5)
                assert found.lost == 0
                assert found.acknowledged >= 100
                assert found.both == 0
                assert found.seconds < 10
