"""Hostile input to a master: refused by name or closed, while other pods are served as ever."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.e2e.feed import Feeder, feeding, keepalive
from tests.e2e.hub import DEADLINE
from tests.e2e.lab import Lab, Tier
from tests.support.descriptors import connections
from tests.support.etcd import EtcdCluster

from kontrol.rpc.client import Client
from kontrol.rpc.errors import RemoteError

EACH = 50
CROWD = 5000
MEGABYTE = 1024 * 1024
LATE = 3.0  # seconds: an agent with the default TTL waits 4.2 for its answer

# ZMTP 3.0 (rfc.zeromq.org/spec/23): a dealer's greeting, its READY, and half of a message.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
HALF = b"\x01\x00\x02" + (100_000).to_bytes(8) + b"\x93\x82"

CLOSED = [  # for these the master closes the connection immediately
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(256),  # TLS
    GREETING + READY + b"\x02" + (1 << 40).to_bytes(8),  # a frame of a terabyte
    b"GET / HTTP/1.1\r\nHost: master\r\n\r\n",
    bytes(range(7, 207)),
]
SILENCE = b""  # and for this after 10 s


def malformed(app: str) -> Iterator[tuple[str, object, str]]:
    """Give a name, an argument of `ping`, and the error that must answer it."""
    good = json.loads(keepalive(app, "evil", "10.66.6.6"))
    invalid = "InvalidRecord"
    for field in ("app", "id", "ip", "key", "role"):
        yield f"no {field}", json.dumps({k: v for k, v in good.items() if k != field}), invalid
        for wrong in (7, None, ["x"], {"x": 1}, "", "x" * 300, "a\nb", "$(reboot)", "../x"):
            yield f"{field} is {wrong!r:.20}", json.dumps({**good, field: wrong}), invalid
    for key in ("../../evil", "a/b", "é", "x" * 65, ".."):
        yield f"key {key:.20}", json.dumps({**good, "key": key, "named": True}), invalid
    for ip in ("0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1"):
        yield f"ip {ip}", json.dumps({**good, "ip": ip}), invalid
    for field, wrong in (
        *(("nonce", "../x"), ("nonce", "zzzz"), ("n", -1), ("n", True), ("n", 2**63 - 1)),
        *(("down", 1), ("port", 0), ("node", "a b"), ("zone", "`x`")),
    ):
        yield f"{field} is {wrong!r}", json.dumps({**good, field: wrong}), invalid
    yield "large", json.dumps({**good, "payload": "x" * 70_000}), invalid
    yield "deep", json.dumps({**good, "payload": nested(40)}), invalid
    yield "very deep", "[" * 60_000, invalid
    yield "binary", bytes(range(256)), invalid
    yield "surrogate", '{"id": "\\ud800"}', invalid
    yield "NaN", json.dumps({**good, "payload": float("nan")}), invalid
    yield "huge number", json.dumps(good)[:-1] + ', "x": ' + "9" * 5000 + "}", invalid
    raws: tuple[object, ...] = (
        "",
        "null",
        "[]",
        "{",
        '"text"',
        "not JSON",
        7,
        None,
        [],
        {"id": "x"},
    )
    for raw in raws:
        yield f"raw {raw!r}", raw, invalid


def nested(depth: int) -> object:
    value: object = "x"
    for _ in range(depth):
        value = [value]
    return value


class Pulse:
    """A good pod that reports all the time; `worst` is its longest wait in seconds."""

    def __init__(self, feeder: Feeder) -> None:
        self.worst = 0.0
        self.answered = asyncio.Event()
        self._feeder = feeder

    async def run(self) -> None:
        while True:
            began = time.monotonic()
            await self._feeder.ping("good", n=0)
            self.worst = max(self.worst, time.monotonic() - began)
            self.answered.set()
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def undisturbed(tier: Tier, what: str) -> AsyncIterator[None]:
    """Measure a good pod while the body does harm."""
    async with feeding(tier) as feeder:
        pulse = Pulse(feeder)
        task = asyncio.create_task(pulse.run())
        try:
            yield
            async with asyncio.timeout(DEADLINE):
                await pulse.answered.wait()
        finally:
            task.cancel()
            await asyncio.wait([task])
    if not task.cancelled():
        await task  # it raised
    assert pulse.worst < LATE, f"{what}: a good pod waited {pulse.worst:.2f} s"


async def refusals(tier: Tier) -> None:
    """Send every malformed keepalive many times; each gets its error."""
    async with Client(tier.addresses[0], tier.port) as client:

        async def refused(name: str, raw: object, error: str) -> None:
            with pytest.raises(RemoteError) as refusal:
                await client.call("ping", raw, timeout=DEADLINE)
            assert (name, refusal.value.name) == (name, error), refusal.value.message
            assert refusal.value.message

        for name, raw, error in malformed(tier.app):
            await asyncio.gather(*(refused(name, raw, error) for _ in range(EACH)))
        for arguments in ((), ("a", "b")):
            with pytest.raises(RemoteError):
                await client.call("ping", *arguments, timeout=DEADLINE)
        with pytest.raises(RemoteError):
            await client.call("pwn", timeout=DEADLINE)


async def junk(tier: Tier, content: bytes) -> None:
    """Say something that is no ZeroMQ, and wait until the master closes the connection."""
    reader, writer = await asyncio.open_connection(tier.addresses[0], tier.port)
    try:
        writer.write(content)
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(DEADLINE):
                while await reader.read(4096):  # its own greeting may come first
                    pass
    except TimeoutError:
        raise AssertionError(f"still connected after {content[:80]!r}") from None
    finally:
        writer.transport.abort()


async def half(tier: Tier) -> None:
    """Break off in the middle of an event."""
    reader, writer = await asyncio.open_connection(tier.addresses[0], tier.port)
    try:
        writer.write(GREETING + READY)
        async with asyncio.timeout(DEADLINE):
            await reader.readuntil(b"READY")
        writer.write(HALF)
        await writer.drain()
    finally:
        writer.transport.abort()


async def crowd(tier: Tier) -> None:
    """Open very many connections, and leave them open; a newcomer is served all the same."""
    writers: list[asyncio.StreamWriter] = []
    try:
        for _ in range(connections(CROWD) // 100):
            opened = await asyncio.gather(
                *(asyncio.open_connection(tier.addresses[0], tier.port) for _ in range(100))
            )
            writers += [writer for _, writer in opened]
        for writer, content in zip(writers, CLOSED * EACH, strict=False):
            writer.write(content)
        async with feeding(tier) as feeder:
            began = time.monotonic()
            await feeder.ping("good", n=0)
            assert time.monotonic() - began < LATE + 1
    finally:
        for writer in writers:
            writer.transport.abort()


async def test_hostile_input() -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, TTL="25", FOVER="15")
        master = tier.masters[0]
        async with feeding(tier) as feeder:
            await feeder.ping("good", n=0)
        run = await tier.hub.settled({"good"})

        async def harm() -> None:
            async with undisturbed(tier, "malformed keepalives"):
                await refusals(tier)
            async with undisturbed(tier, "junk"), asyncio.TaskGroup() as group:
                for _ in range(EACH):
                    group.create_task(half(tier))
                    for content in CLOSED:
                        group.create_task(junk(tier, content))
            async with undisturbed(tier, "a crowd"):
                await crowd(tier)

        await harm()
        before = master.rss()
        async with asyncio.TaskGroup() as group:
            for _ in range(EACH):
                group.create_task(junk(tier, SILENCE))
            await harm()
        assert master.rss() - before < 16 * MEGABYTE

        keys = set((await etcd.ctl("get", "", "--prefix", "--keys-only")).split())
        root = f"/kontrol/default/{tier.app}/"
        assert all(key.startswith(root) for key in keys)
        assert {key for key in keys if "/pods/" in key} == {f"{root}pods/{run.pods[0]['key']}"}
        assert len(tier.hub.runs) == 1
        assert await master.end() == 0
