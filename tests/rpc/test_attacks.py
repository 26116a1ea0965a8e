"""Attacks on the port itself: the process lives, its memory is bounded, honest peers are served.

The server runs in a process of its own. An honest peer calls all the time, from the same address.
"""

import asyncio
import contextlib
import os
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path

import msgpack
import pytest
from tests.rpc.keyed import cluster
from tests.rpc.support import (
    DEADLINE,
    GREETING,
    READY,
    descriptors,
    framed,
    line,
    peer,
    resident,
    say,
    shaken,
    until,
)
from tests.support.descriptors import connections

from kontrol.rpc.client import Client
from kontrol.rpc.limits import Limits
from kontrol.rpc.security import z85
from kontrol.rpc.security.keys import Keyring, Kind, ServerKind
from kontrol.rpc.zmtp.curve import CurveClient, KeyPair
from kontrol.rpc.zmtp.machine import CLIENT, Machine, Ready
from kontrol.rpc.zmtp.mechanism import Mechanism, Null

LATE = 2.5  # seconds: a tenth of the default TTL
MIB = 1024  # KiB, as `resident` counts
LIMITS = Limits()


class Honest:
    """A peer that calls all the time; `slowest` is its longest call, in seconds.

    Less what the server waited for a processor, which other processes had.
    """

    def __init__(self, client: Client, server: Process) -> None:
        self.calls = 0
        self.slowest = 0.0
        self._client = client
        self._server = server

    async def call(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time() - self._waited()
            assert await self._client.call("echo", "x", timeout=DEADLINE) == "x"
            self.slowest = max(self.slowest, loop.time() - self._waited() - begun)
            self.calls += 1
            await asyncio.sleep(0.02)

    def _waited(self) -> float:
        """Return for how many seconds the server was ready to run, and did not (schedstat)."""
        text = Path(f"/proc/{self._server.pid}/schedstat").read_text(encoding="ascii")
        return int(text.split()[1]) / 1e9


class Attack:
    """What is attacked. `before` is its memory, in KiB."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.port = port
        self.before = resident(process)

    @property
    def grown(self) -> int:
        """KiB by which the process has grown."""
        return resident(self.process) - self.before


@contextlib.asynccontextmanager
async def attacked(*arguments: object) -> AsyncIterator[Attack]:
    """Run a server, and an honest peer that is never late; the server is alive in the end."""
    async with peer("fuzzed_server.py", *arguments) as process:
        port = int(await line(process))
        keys = Keyring.load(str(arguments[0])) if arguments else None
        to: tuple[Kind, ...] = ("master", "agent")
        async with Client("127.0.0.1", port, keys=keys, as_="master", to=to) as client:
            await client.call("echo", 0, timeout=DEADLINE)
            honest, attack = Honest(client, process), Attack(process, port)
            task = asyncio.create_task(honest.call())
            try:
                yield attack
                seen = honest.calls
                await until(lambda: honest.calls > seen + 5 or task.done())
            finally:
                task.cancel()
                await asyncio.wait([task])
            assert task.cancelled(), task.exception()
            assert honest.slowest < LATE
            assert await client.call("faults", timeout=DEADLINE) == []
        assert process.returncode is None


async def closed(reader: asyncio.StreamReader) -> bytes:
    """Return what is left to read of a connection that the server closes."""
    async with asyncio.timeout(DEADLINE):
        with contextlib.suppress(ConnectionError):
            return await reader.read()
    return b""


async def conversed(
    port: int, mechanism: Mechanism
) -> tuple[Machine, asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection after its handshake, by the mechanism."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    machine = Machine(CLIENT, mechanism, LIMITS, 0.0)
    async with asyncio.timeout(DEADLINE):
        while not isinstance(machine.next(), Ready):
            writer.write(machine.take())
            data = await reader.read(4096)
            assert data
            machine.receive(data, 0.0)
    return machine, reader, writer


@pytest.mark.parametrize("own", [None, "master", "agent"])
async def test_what_a_peer_calls_itself_is_ignored(tmp_path: Path, own: ServerKind | None) -> None:
    """ROUTERs of libzmq 4.3.5 end the process: `claimed` is what they give out next."""
    keys = cluster(tmp_path / "keys")
    kind: Kind = "agent" if own == "master" else "operator"

    def mechanism(identity: bytes) -> Mechanism:
        metadata = {b"Socket-Type": b"DEALER", b"Identity": identity}
        if own is None:
            return Null(metadata)
        ring = Keyring.load(keys)
        pair = KeyPair.of(z85.decode(ring.own(kind).secret))
        return CurveClient(pair, z85.decode(ring.own(own).public), metadata, os.urandom)

    arguments = () if own is None else (keys, own)
    async with attacked(*arguments) as attack:
        writers = []
        claimed = [b"\0" + (0x6B8B4567 + number).to_bytes(4) for number in range(60)]
        for identity in (*claimed, *(b"", b"same", b"\0", bytes(255)) * 15):
            machine, _, writer = await conversed(attack.port, mechanism(identity))
            writers.append(writer)
            machine.send([b"", msgpack.packb([{"message_id": 1, "v": 3}, "echo", [1]])])
            writer.write(machine.take())
        for writer in writers:
            writer.transport.abort()


@pytest.mark.parametrize("part", [0, 1, 60_000], ids=lambda size: f"{size} bytes")
async def test_a_message_of_endless_parts_ends_its_connection(part: int) -> None:
    more = (b"\x01" + bytes((part,)) if part < 256 else b"\x03" + part.to_bytes(8)) + bytes(part)
    async with attacked() as attack:
        reader, writer = await shaken(attack.port)
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(DEADLINE):
                for _ in range(100_000_000 // len(more)):
                    writer.write(more)
                    await writer.drain()
                    if reader.at_eof():
                        break
        await closed(reader)
        writer.transport.abort()
        assert attack.grown < 16 * MIB


async def test_messages_that_are_never_complete_are_bounded_together() -> None:
    async with attacked() as attack:
        idle = descriptors(attack.process)
        opened = [await shaken(attack.port) for _ in range(100)]
        almost = b"\x02" + LIMITS.readable.to_bytes(8) + bytes(LIMITS.readable - 1)
        for start in range(0, len(almost), 1 << 20):
            for _, writer in opened:
                writer.write(almost[start : start + (1 << 20)])
            for _, writer in opened:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    async with asyncio.timeout(5.0):
                        await writer.drain()
        most = 2 * LIMITS.unfinished + 16 * 2**20  # a buffer is there twice while it grows
        assert attack.grown * 1024 < most
        # All of it would be 800 MiB; what is left is within the bound.
        await until(lambda: descriptors(attack.process) <= idle + 20)
        assert attack.grown * 1024 < most
        for _, writer in opened:
            writer.transport.abort()


async def test_twenty_thousand_idle_connections_from_one_address() -> None:
    many = connections(20_000)
    async with attacked() as attack, peer("crowd.py", attack.port) as crowd:
        idle = descriptors(attack.process)
        sizes = []
        for _ in range(2):
            say(crowd, str(many))
            assert await line(crowd) == str(many)
            most = idle + LIMITS.per_address + 50
            await until(lambda: descriptors(attack.process) <= most)  # noqa: B023
            sizes.append(attack.grown)
            say(crowd, "0")
            assert await line(crowd) == "0"
            await until(lambda: descriptors(attack.process) <= idle + 5)
        assert sizes[0] < LIMITS.per_address * 10, f"KiB: {sizes}"
        assert sizes[-1] - sizes[0] < 8 * MIB, f"KiB: {sizes}"


async def test_slow_handshakes_end_in_time() -> None:
    async with attacked() as attack, contextlib.AsyncExitStack() as stack:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        hello = GREETING + READY + b"DEALER"
        opened = [await asyncio.open_connection("127.0.0.1", attack.port) for _ in range(500)]
        for _, writer in opened:
            stack.callback(writer.transport.abort)
        for at in range(8):  # a byte a second, of which none completes anything
            for _, writer in opened:
                writer.write(hello[at : at + 1])
            await asyncio.sleep(1.0)
        for reader, _ in opened:
            assert len(await closed(reader)) <= len(GREETING)
        assert loop.time() - begun < LIMITS.handshake + 5


CALL = framed(b"", msgpack.packb([{"message_id": 1, "v": 3}, "nonesuch", []]))
FLOODS = {
    "heartbeats": b"\x04\x07\x04PING\0\0" * 1000,
    "commands": b"\x04\x05\x04TEST" * 1000,
    "empty messages": b"\0\0" * 3000,
    "calls": CALL * 200,
}


@pytest.mark.parametrize("what", FLOODS)
async def test_a_flood_of_which_no_answer_is_read(what: str) -> None:
    async with attacked() as attack:
        opened = [await shaken(attack.port) for _ in range(20)]

        async def flood(writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(FLOODS[what])
                    await writer.drain()

        async with asyncio.TaskGroup() as group:
            for reader, writer in opened:
                reader._transport.pause_reading()  # type: ignore[attr-defined]  # no other way
                task = group.create_task(flood(writer))
                asyncio.get_running_loop().call_later(4.0, task.cancel)
        assert attack.grown < 20 * 8 * MIB
        for _, writer in opened:
            writer.transport.abort()


async def test_connections_that_break_off_anywhere_leave_nothing() -> None:
    hello = GREETING + READY + b"DEALER" + CALL
    async with attacked() as attack:
        idle = descriptors(attack.process)
        for _ in range(3):
            for size in range(0, len(hello), 3):
                _, writer = await asyncio.open_connection("127.0.0.1", attack.port)
                writer.write(hello[:size])
                await asyncio.sleep(0)
                writer.transport.abort()
        await until(lambda: descriptors(attack.process) <= idle)
        assert attack.grown < 4 * MIB
