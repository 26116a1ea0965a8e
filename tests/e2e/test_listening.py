"""When a master opens its port: once it can answer, or after 2 s if etcd does not."""

import asyncio
import time

import pytest
from tests.e2e.lab import Lab
from tests.master.support import record
from tests.support.etcd import EtcdCluster

from kontrol.rpc.client import Client
from kontrol.rpc.errors import RemoteError

KEEPALIVE = record(1)


async def connects(host: str, port: int) -> None:
    """Return once a process listens."""
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(0.002)
                continue
            writer.close()
            return


async def test_what_listens_can_answer() -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=0, places=3)
        for i in range(3):  # it was one start of three
            starting = asyncio.create_task(tier.master(i))
            host = tier.addresses[i]
            await connects(host, tier.port)
            async with Client(host, tier.port) as client:
                answer = await client.call("ping", KEEPALIVE, timeout=10)
            assert isinstance(answer, dict)
            assert answer["seq"] == 0
            await starting


async def test_without_etcd_it_listens_after_two_seconds_and_says_why() -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=0, places=1, CALLBACK="true")
        etcd.stop(0)
        began = time.monotonic()
        master = await tier.master(0)
        assert time.monotonic() - began >= 2
        host = tier.addresses[0]
        async with Client(host, tier.port) as client:
            with pytest.raises(RemoteError, match="Unavailable"):
                await client.call("ping", KEEPALIVE, timeout=10)
        assert await master.end() == 0
