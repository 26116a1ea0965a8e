"""Fuzzes port 8000: `python -m tests.rpc.fuzz`, for minutes; a test does so for seconds.

Some peers send random and mutated messages, with an agent's key if there are keys; others open
connections with random and mutated bytes, those of a good peer among them. Meanwhile a bystander
calls without pause. In the end the server must run, have logged no error, have answered the
bystander in time, and hold neither more memory nor more descriptors than after the first part.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.asyncio
from tests.rpc.keyed import cluster
from tests.rpc.mutants import Mutants
from tests.rpc.support import DEADLINE, descriptors, line, peer, resident, until
from tests.rpc.tap import tapped

from kontrol.rpc.client import Client
from kontrol.rpc.security.keys import Keyring

PEERS = 4
PER_CONNECTION = 500  # messages; then a new connection
OPENINGS = 50  # messages to one opening of a connection
BEAT = 1.0  # seconds, as the server has it


@dataclass
class Report:
    """What came of it. Memory is in KiB: after a fifth of all messages, and in the end."""

    messages: int = 0
    openings: int = 0
    answers: int = 0
    calls: int = 0
    slowest: float = 0.0
    before: int = 0
    after: int = 0
    descriptors: int = 0
    faults: object = None
    seconds: float = 0.0


class Fuzz:
    """Sends `count` messages to a server of its own."""

    def __init__(self, count: int, seed: int, keys: Path | None) -> None:
        self.report = Report()
        self._count = count
        self._seed = seed
        self._keys = None if keys is None else Keyring.load(keys)
        self._folder = keys
        self._port = 0
        self._heard: list[bytes] = []

    async def run(self) -> Report:
        report, begun = self.report, time.monotonic()
        arguments = () if self._folder is None else (self._folder,)
        async with peer("fuzzed_server.py", *arguments) as process:
            self._port = int(await line(process))
            idle = descriptors(process)
            async with tapped(self._port) as (tap, way), self._client(way) as client:
                await client.call("echo", "x", timeout=DEADLINE)
                self._heard = [b"".join(tap.sent), *tap.sent]
            async with self._bystander(process):
                await self._crowd(self._count // 5)
                report.before = resident(process)
                await self._crowd(self._count - self._count // 5)
            await until(lambda: descriptors(process) <= idle + 3)
            report.after = resident(process)
            report.descriptors = descriptors(process) - idle
            async with self._client(self._port) as client:
                report.faults = await client.call("faults", timeout=DEADLINE)
            assert process.returncode is None
        report.seconds = time.monotonic() - begun
        return report

    def _client(self, port: int) -> Client:
        return Client("127.0.0.1", port, heartbeat=BEAT, keys=self._keys, as_="master")

    @contextlib.asynccontextmanager
    async def _bystander(self, process: Process) -> AsyncIterator[None]:
        """Call all the while; what is too slow raises here."""
        report = self.report

        async def call() -> None:
            async with self._client(self._port) as client:
                while True:
                    begun = time.monotonic()
                    assert await client.call("echo", "x", timeout=DEADLINE) == "x"
                    report.slowest = max(report.slowest, time.monotonic() - begun)
                    report.calls += 1
                    await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(call())
            await until(lambda: report.calls > 10)
            yield
            task.cancel()

    async def _crowd(self, count: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(PEERS):
                self._seed += 1
                group.create_task(self._harass(count // PEERS, Mutants(self._seed)))

    async def _harass(self, count: int, mutants: Mutants) -> None:
        for start in range(0, count, PER_CONNECTION):
            async with self._dealer() as dealer:
                for i in range(min(PER_CONNECTION, count - start)):
                    await dealer.send_multipart(mutants.message())
                    self.report.messages += 1
                    if not i % OPENINGS:
                        await self._open(mutants.opening(self._heard))
                await asyncio.sleep(0.01)  # for some of the answers

    @contextlib.asynccontextmanager
    async def _dealer(self) -> AsyncIterator[zmq.asyncio.Socket]:
        """A connection of libzmq's that takes what is answered, and never sends a heartbeat."""
        dealer = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        if self._keys is not None:
            own, server = self._keys.own("agent"), self._keys.own("master")
            dealer.setsockopt(zmq.CURVE_PUBLICKEY, own.public.encode("ascii"))
            dealer.setsockopt(zmq.CURVE_SECRETKEY, own.secret.encode("ascii"))
            dealer.setsockopt(zmq.CURVE_SERVERKEY, server.public.encode("ascii"))
        dealer.connect(f"tcp://127.0.0.1:{self._port}")

        async def receive() -> None:
            while True:
                await dealer.recv_multipart()
                self.report.answers += 1

        async with asyncio.TaskGroup() as group:
            task = group.create_task(receive())
            try:
                yield dealer
            finally:
                task.cancel()
                dealer.close()

    async def _open(self, data: bytes) -> None:
        """Open a connection, say `data`, and break off."""
        self.report.openings += 1
        with contextlib.suppress(ConnectionError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                writer.write(data)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(100), 0.01)
            finally:
                writer.transport.abort()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()


def main() -> int:
    """Run it, and print what came of it; returns 1 if memory has grown or something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.rpc.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=200_000, help="messages (%(default)d)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**9))
    parser.add_argument("--keys", action="store_true", help="with keys on the port")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        keys = cluster(Path(folder) / "keys") if options.keys else None
        report = asyncio.run(Fuzz(options.count, options.seed, keys).run())
    print(report)
    return int(not sound(report))


def sound(report: Report) -> bool:
    """Say whether all went well."""
    return not report.faults and report.slowest < 5 and report.after - report.before < 16 * 1024


if __name__ == "__main__":
    sys.exit(main())
