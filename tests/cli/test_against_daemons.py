"""The commands against real masters, as an operator would use them on a bad night."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.e2e.hub import DEADLINE
from tests.e2e.lab import Lab, Tier
from tests.support.etcd import EtcdCluster, free_port

TOKEN = "a-token-for-the-tests"


class Done(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


class Shell:
    """An operator's shell: environment, and commands in it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = dict(environ)

    async def kontrol(self, *words: str, **more: str) -> Done:
        return await self._run(subprocess.PIPE, words, more)

    async def into(self, path: Path, *words: str) -> Done:
        """Run a command with its output in a file."""
        with path.open("w", encoding="utf-8") as file:
            return await self._run(file.fileno(), words, {})

    async def _run(self, stdout: int, words: tuple[str, ...], more: Mapping[str, str]) -> Done:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kontrol", *words),
            env={"PATH": os.environ["PATH"], **self.environ, **more},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )
        async with asyncio.timeout(DEADLINE):
            out, err = await process.communicate()
        return Done(process.returncode or 0, (out or b"").decode("utf-8"), err.decode("utf-8"))

    async def becomes(self, text: str, *words: str) -> Done:
        """Repeat a command until it prints a text."""
        async with asyncio.timeout(DEADLINE):
            while True:
                done = await self.kontrol(*words)
                if text in done.out:
                    return done


@pytest.fixture
def callback(tmp_path: Path) -> str:
    """A callback of our own: the lab's knows of no runs that were asked for."""
    path = tmp_path / "callback"
    path.write_text('#!/bin/sh\necho "for $HASH" >&2\necho "{\\"run\\": $RUN}"\n', "utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n", "utf-8")
    path.chmod(0o600)
    return path


async def start(tier: Tier, masters: int, token: Path) -> Shell:
    """Start masters, and return a shell that knows them."""
    port = str(free_port())
    rest = {"KONTROL_HTTP_PORT": port, "KONTROL_TOKEN_FILE": str(token)}
    await asyncio.gather(*(tier.master(i, **rest) for i in range(masters)))
    for daemon in tier.masters:
        await daemon.logged("REST on port")
    return Shell({**rest, "KONTROL_MASTER": "|".join(tier.addresses)})


async def test_a_night(token: Path, callback: str) -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        # The damper outlasts the time between the losses, up to a third of the TTL.
        tier = await lab.tier(etcd.endpoints, masters=0, places=2, CALLBACK=callback, DAMPER="4")
        shell = await start(tier, 2, token)
        assert (await shell.becomes("no pod reports", "status")).status == 6

        await asyncio.gather(*(tier.agent(pod) for pod in "abcd"))
        done = await shell.becomes("All is well: 4 pods; nothing is due.", "status")
        assert done.status == 0
        assert f"tier      default/{tier.app}\n" in done.out
        assert "pods      4: 4 test\n" in done.out
        pods = json.loads((await shell.kontrol("pods", "--json")).out)["pods"]
        rows = (await shell.kontrol("pods")).out.splitlines()
        assert [row.split()[:2] for row in rows[1:]] == [[f"#{p['seq']}", p["id"]] for p in pods]
        [c] = [pod for pod in pods if pod["id"] == "c"]
        assert json.loads((await shell.kontrol("pods", "c", "--json")).out) == c
        assert (await shell.kontrol("pods", "e")).status == 3
        assert (await shell.kontrol("explain", "999")).status == 3
        run = json.loads((await shell.kontrol("state")).out)["run"]

        # Steer it; without the token, or to what is not kept: refused.
        assert (await shell.kontrol("run-now")).out == f"run {run + 1} has started\n"
        explained = (await shell.becomes("was acknowledged.", "explain", str(run + 1))).out
        assert "why       it was requested, by REST from 127." in explained
        assert "\n  | for " in explained
        done = await shell.kontrol("rollback", str(run))
        assert (done.status, done.err) == (0, "")
        assert json.loads((await shell.kontrol("state")).out) == {"run": run}
        done = await shell.kontrol("rollback", "999")
        assert (done.status, done.out) == (5, "")
        assert "there was no run 999: the last one is run " in done.err
        done = await shell.kontrol("forget", "none")
        assert (done.status, done.out) == (5, "")
        assert "no pod and no registration has the key, id or number 'none'" in done.err
        done = await shell.kontrol("run-now", KONTROL_TOKEN_FILE="")
        assert done.status == 5
        assert "requires a token for this, and none is set here. Set KONTROL_TOKEN_FILE" in done.err

        # Three of four are lost: the brake.
        for pod in "abc":
            await tier.agents[pod].kill()
        held = await shell.becomes("HELD BY THE BRAKE", "status")
        assert held.status == 6
        names = ", ".join(f"#{pod['seq']} {pod['id']}" for pod in pods if pod["id"] in "abc")
        assert held.out.splitlines()[:2] == [
            "1 thing is wrong:",
            f"- 3 of 4 pods are lost ({names}), and the callback is held by the brake",
        ]
        assert "3 of 4 pods (" in (await shell.kontrol("explain")).out.splitlines()[0]
        assert (await shell.kontrol("release")).out == "the brake is released\n"
        await shell.becomes("All is well: 1 pod; nothing is due.", "status")
        assert "lost      3: #" in (await shell.kontrol("explain")).out

        # The leader dies: any other master tells.
        leader = json.loads((await shell.kontrol("status", "--json")).out)["leader"]["id"]
        await tier.masters[int(leader.removeprefix("m"))].kill()
        done = await shell.kontrol("status")
        if "masters   2: m" in done.out:  # until its lease ends, it stands there as the leader
            assert done.status == 6
            assert f"- the leader {leader} " in done.out
        assert (await shell.becomes("masters   1: m", "status")).status in (0, 6)
        done = await shell.becomes("All is well: 1 pod; nothing is due.", "status", "-v")
        assert f"leader    {leader} " not in done.out
        assert "connection refused" in done.err or leader == "m1"
        ledger = json.loads((await shell.kontrol("runs", "--json")).out)["runs"]
        numbers = [entry["run"] for entry in ledger]
        assert numbers == sorted(numbers, reverse=True)
        assert len(numbers) >= 4


async def test_where_a_master_runs_nothing_needs_to_be_set(tmp_path: Path, callback: str) -> None:
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=0, places=1, CALLBACK=callback)
        rest = {"KONTROL_HTTP_PORT": str(free_port())}
        master = await tier.master(0, **rest, **runtime)
        await master.logged("REST on port")
        await tier.agent("a")
        where = {"KONTROL_MASTER": tier.addresses[0], **rest}
        shell = Shell({**where, **runtime})
        await shell.becomes("All is well: 1 pod", "status")
        assert (await shell.kontrol("release")).out == "the brake holds nothing\n"
        assert "for " in (await shell.kontrol("explain")).out  # what it wrote to standard error
        elsewhere = await Shell(where).kontrol("release")
        assert elsewhere.status == 5
        assert "Run the command where that master runs, as its user" in elsewhere.err
        assert await master.end() == 0
        assert os.listdir(tmp_path / f"kontrol-{os.getuid()}") == []  # noqa: PTH208


async def test_wrong_ports_and_agents_are_told(token: Path) -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=0, places=1)
        shell = await start(tier, 1, token)
        url = f"http://{tier.addresses[0]}:{tier.port}"
        done = await shell.kontrol("status", "--master", url)
        assert done.status == 4
        assert f"{url}/v1/status: it speaks ZeroMQ: that is the port of KONTROL_PORT" in done.err

        port = str(free_port())
        agent = await tier.agent("a", KONTROL_HTTP_PORT=port, KONTROL_BIND="127.0.0.1")
        await agent.logged("REST on port")
        done = await shell.kontrol("status", "--master", f"http://127.0.0.1:{port}")
        assert done.status == 4
        assert "this process is an agent only; ask a master of its tier" in done.err


async def test_export_and_import(token: Path, tmp_path: Path) -> None:
    async with EtcdCluster() as etcd, EtcdCluster() as other, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=0, places=1)
        shell = await start(tier, 1, token)
        await asyncio.gather(*(tier.agent(pod) for pod in "ab"))
        run = await tier.hub.settled("ab")
        await tier.hub.acknowledgement(run)

        # A master's environment, in an agent's mode: only what is needed of it counts.
        shell.environ |= tier.environ("master", "m0", tier.addresses[0], {"KONTROL_MODE": "agent"})
        path = tmp_path / "backup.json"
        assert await shell.kontrol("export", str(path)) == (0, "", "")
        assert path.stat().st_mode & 0o777 == 0o600
        document = json.loads(path.read_text("utf-8"))
        assert document["state"] == {"run": run.number}
        told = await shell.kontrol("export")
        assert json.loads(told.out)["seats"] == document["seats"]
        assert told.err == ""
        path.chmod(0o644)  # what was there before does not count
        assert await shell.kontrol("export", str(path)) == (0, "", "")
        assert path.stat().st_mode & 0o777 == 0o600
        for mode, warns in ((0o644, True), (0o640, True), (0o600, False)):
            path.chmod(mode)
            done = await shell.into(path, "export")
            assert (done.status, "others can read this file" in done.err) == (0, warns), done
            written = json.loads(path.read_text("utf-8"))
            assert written | {"term": 0} == document | {"term": 0}  # a busy machine may elect again

        done = await shell.kontrol("import", str(path))
        assert (done.status, done.out) == (5, "")
        assert "masters are running (m0): stop them all, then import" in done.err

        elsewhere = {"KONTROL_ETCD": ",".join(other.endpoints)}
        done = await shell.kontrol("import", str(path), **elsewhere)
        assert done.status == 0, done.err
        assert f"the next pod is #{document['seq']}" in done.out
        assert (
            json.loads((await shell.kontrol("export", **elsewhere)).out)["runs"]
            == (document["runs"])
        )
        assert "is in use" in (await shell.kontrol("import", str(path), **elsewhere)).err

        path.write_text("{}", "utf-8")
        assert "this is not an export" in (await shell.kontrol("import", str(path))).err
        path.write_text("{", "utf-8")
        assert (await shell.kontrol("import", str(path))).status == 2
        assert (await shell.kontrol("import", str(tmp_path / "none"))).status == 2
        assert (await shell.kontrol("export", str(tmp_path / "no" / "folder"))).status == 2
        assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []  # noqa: PTH208
        tier.masters[0].signal(signal.SIGTERM)
        assert await tier.masters[0].ended() == 0
        done = await shell.kontrol("export", KONTROL_ETCD=f"127.0.0.1:{free_port()}")
        assert done.status == 4
        assert "KONTROL_ETCD says where it is" in done.err
