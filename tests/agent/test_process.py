"""The agent as a process: `kontrol` in agent mode, signals, and `kontrol leave`."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from tests.support.etcd import free_port

from kontrol.ensemble.pod import Keepalive, parse_keepalive
from kontrol.rpc.client import Client
from kontrol.rpc.errors import RemoteError
from kontrol.rpc.server import Call, Server
from kontrol_common.processes import ENDING_SIGNALS, STRAY_SIGNALS

DEADLINE = 40.0
TTL = 6.0


class Masters:
    """A tier of one, that keeps what it is told."""

    def __init__(self) -> None:
        self.port = 0
        self.records: list[Keepalive] = []
        self._told = asyncio.Event()

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[None]:
        server = Server({"ping": self._ping})
        self.port = await server.bind("127.0.0.1", port)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(server.serve())
            yield
            task.cancel()

    async def _ping(self, call: Call, raw: str) -> object:
        self.records.append(parse_keepalive(raw))
        self._told.set()
        return {"seq": 0, "ttl": 25, "leader": None}

    async def hears(self, payload: object) -> None:
        async with asyncio.timeout(DEADLINE):
            while not self.records or self.records[-1].payload != payload:
                self._told.clear()
                await self._told.wait()


@asynccontextmanager
async def agent(
    masters: Masters,
    folder: Path,
    more: Mapping[str, str] | None = None,
    *,
    nohup: bool = False,
    stdout: int = DEVNULL,
) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(("nohup",) if nohup else ()),
        sys.executable,
        "-m",
        "kontrol",
        env={**environment(masters, folder), **(more or {})},
        stdout=stdout,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def environment(masters: Masters, folder: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "KONTROL_MODE": "agent",
        "KONTROL_ID": "pod-1",
        "KONTROL_IP": "10.1.0.1",
        "KONTROL_LABELS": json.dumps({"app": "test", "role": "test"}),
        "KONTROL_ANNOTATIONS": json.dumps(
            {"kontrol.unity3d.com/master": f"127.0.0.1:{masters.port}"}
        ),
        "KONTROL_PAYLOAD": os.fspath(folder / "payload.json"),
        "KONTROL_CONTROL": os.fspath(folder / "control.sock"),
        "KONTROL_HTTP_PORT": "0",
    }


async def says(process: Process, text: str) -> None:
    """Read the log up to the line that holds `text`."""
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        while text not in (await process.stdout.readline()).decode():
            assert not process.stdout.at_eof(), "the process has ended"


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


class Beats(Masters):
    """Masters with a short TTL, that know when they were told what."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    async def _ping(self, call: Call, raw: str) -> object:
        self.times.append(asyncio.get_running_loop().time())
        await super()._ping(call, raw)
        return {"seq": 0, "ttl": TTL, "leader": None}


async def test_keepalives_are_on_time_while_hostile_arguments_are_matched(tmp_path: Path) -> None:
    allow = tmp_path / "allow.json"
    allow.write_text('{"say": {"argv": ["echo", "{1}"], "args": ["(a|aa)+"]}}', encoding="utf-8")
    masters = Beats()
    port = free_port()
    hostile = json.dumps({"argv": ["say", "a" * 100 + "!"]})
    more = {
        "KONTROL_INVOKE": "insecure",
        "KONTROL_INVOKE_ALLOW": os.fspath(allow),
        "KONTROL_PORT": str(port),
    }
    refused = 0

    async def call_on() -> None:
        nonlocal refused
        async with Client("127.0.0.1", port) as client:
            for _ in range(10):
                with pytest.raises(RemoteError, match="Forbidden: argument 1 was not compared"):
                    async for _ in client.stream("exec", hostile, timeout=DEADLINE):
                        pass
                refused += 1

    async with masters.serving(), agent(masters, tmp_path, more):
        await masters.hears("")
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(call_on())
        masters.records.clear()
        await masters.hears("")
    assert refused == 40
    gaps = [after - before for before, after in pairwise(masters.times)]
    assert max(gaps) < 2 * TTL / 3, gaps  # due every TTL/3; after TTL of silence a pod is lost


async def ended(process: Process) -> int:
    async with asyncio.timeout(DEADLINE):
        return await process.wait()


@pytest.mark.parametrize("number", ENDING_SIGNALS)
async def test_a_signal_ends_it_after_it_deregisters(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "payload.json").write_text('"ready"', encoding="utf-8")
    masters = Masters()
    async with masters.serving(), agent(masters, tmp_path) as process:
        await masters.hears("ready")
        process.send_signal(number)
        assert await ended(process) == 0
        assert [record.down for record in masters.records] == [False, True]
    assert left_in(tmp_path) == ["payload.json"]


@pytest.mark.parametrize("number", ENDING_SIGNALS)
async def test_a_signal_sent_twice_at_a_stroke_does_not_hasten_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    """As `timeout`, or a terminal that closes, sends them."""
    masters = Masters()
    async with masters.serving(), agent(masters, tmp_path) as process:
        await masters.hears("")
        process.send_signal(signal.SIGSTOP)  # so that it gets them all together
        for one in {number, signal.SIGHUP, signal.SIGTERM, signal.SIGINT}:
            process.send_signal(one)
        process.send_signal(signal.SIGCONT)
        assert await ended(process) == 0
        assert [record.down for record in masters.records] == [False, True]


async def test_signals_that_mean_nothing_are_ignored_with_a_line(tmp_path: Path) -> None:
    masters = Masters()
    async with masters.serving(), agent(masters, tmp_path, stdout=PIPE) as process:
        await masters.hears("")
        for number in STRAY_SIGNALS:
            process.send_signal(number)
            await says(process, f"{number.name}: ignored")
        process.terminate()
        assert await ended(process) == 0
        assert [record.down for record in masters.records] == [False, True]


async def test_a_hangup_that_is_ignored_stays_so(tmp_path: Path) -> None:
    masters = Masters()
    async with masters.serving(), agent(masters, tmp_path, nohup=True, stdout=PIPE) as process:
        await masters.hears("")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGUSR1)  # delivered after it: lower numbers come first
        await says(process, "SIGUSR1: ignored")
        process.terminate()
        assert await ended(process) == 0
        assert process.stdout is not None
        assert b"SIGHUP" not in await process.stdout.read()


async def test_with_no_master_to_hear_it_a_signal_ends_it_all_the_same(tmp_path: Path) -> None:
    connected = asyncio.Event()

    async def hole(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await connections.wait()
        writer.close()

    connections = asyncio.Event()
    server = await asyncio.start_server(hole, "127.0.0.1", 0)
    masters = Masters()
    masters.port = server.sockets[0].getsockname()[1]
    async with server, agent(masters, tmp_path) as process:
        async with asyncio.timeout(DEADLINE):
            await connected.wait()
        loop = asyncio.get_running_loop()
        start = loop.time()
        process.terminate()
        assert await ended(process) == 0
        assert loop.time() - start < 2 + 3  # two seconds to deregister, and a slow machine
        connections.set()


async def test_kontrol_leave_returns_when_the_masters_know(tmp_path: Path) -> None:
    masters = Masters()
    async with masters.serving(), agent(masters, tmp_path) as process:
        await masters.hears("")
        leave = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "kontrol", "leave", env=environment(masters, tmp_path)
        )
        assert await ended(leave) == 0
        assert [record.down for record in masters.records] == [False, True]
        assert process.returncode is None
        process.terminate()
        assert await ended(process) == 0
        assert len(masters.records) == 2
