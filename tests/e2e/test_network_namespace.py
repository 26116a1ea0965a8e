"""A pod behind a real network, whose link goes down: packets are dropped without an error."""

import asyncio
import contextlib
import json
import random
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from tests.e2e.lab import MASTER, Lab
from tests.support.etcd import EtcdCluster


async def ip(*words: str) -> None:
    """Run the tool, and see that it succeeds."""
    process = await asyncio.create_subprocess_exec(
        "ip", *words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, f"ip {' '.join(words)}: {output.decode('utf-8')}"


@dataclass(frozen=True)
class Network:
    """A network namespace, and the pair of links that leads to it."""

    name: str
    here: str
    there: str

    async def link(self, state: str) -> None:
        await ip("link", "set", f"{self.name}a", state)


@contextlib.asynccontextmanager
async def network() -> AsyncIterator[Network]:
    number = random.randrange(1 << 14)
    name = f"kt{number}"
    subnet = f"10.{200 + (number >> 12)}.{number >> 4 & 255}.{(number & 15) * 16}".rsplit(".", 1)
    here, there = (f"{subnet[0]}.{int(subnet[1]) + i}" for i in (1, 2))
    await ip("netns", "add", name)
    try:
        await ip("link", "add", f"{name}a", "type", "veth", "peer", "name", "eth0", "netns", name)
        await ip("addr", "add", f"{here}/28", "dev", f"{name}a")
        await ip("link", "set", f"{name}a", "up")
        await ip("-n", name, "addr", "add", f"{there}/28", "dev", "eth0")
        await ip("-n", name, "link", "set", "eth0", "up")
        await ip("-n", name, "link", "set", "lo", "up")
        yield Network(name, here, there)
    finally:
        await ip("netns", "del", name)  # and with it both links


@pytest.mark.privileged
async def test_a_link_that_goes_down_and_comes_back() -> None:
    async with EtcdCluster() as etcd, network() as net, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=0, places=1, TTL="6")
        await tier.master(0, KONTROL_BIND=net.here, KONTROL_IP=net.here)
        environ = tier.environ("agent", "pod", net.there, {})
        environ["KONTROL_ANNOTATIONS"] = json.dumps({MASTER: f"{net.here}:{tier.port}"})
        pod = await lab.start("pod", environ, prefix=("ip", "netns", "exec", net.name))
        run = await tier.hub.settled({"pod"})

        # A short outage: heard again within TTL/3 of its end, and never missed.
        await net.link("down")
        await pod.logged("keepalive to .* failed: no answer in time")
        await net.link("up")
        began = time.monotonic()
        await pod.logged(r"reporting to .* again; failed attempts: \d")
        assert time.monotonic() - began < 6 / 3 + 1
        assert len(tier.hub.runs) == 1

        # A long one: lost, and back with the same number.
        await net.link("down")
        await tier.hub.settled(set())
        assert tier.hub.since(run)["lost"] == {"pod"}
        await net.link("up")
        began = time.monotonic()
        back = await tier.hub.settled({"pod"})
        assert time.monotonic() - began < 6 / 3 + 2
        assert back.seqs == run.seqs
        assert await pod.end() == 0
        await tier.hub.settled(set())
        assert tier.hub.since(back)["left"] == {"pod"}
