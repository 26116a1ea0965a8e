"""Real daemons and a hostile sender: it locks no pod out for good, is named, and is stopped."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

from tests.e2e.feed import keepalive
from tests.e2e.hub import DEADLINE
from tests.e2e.lab import Lab, Tier
from tests.e2e.test_rest import Operator, agent, master
from tests.rpc.keyed import cluster, part
from tests.support.etcd import EtcdCluster
from tests.web.support import WRITER

from kontrol.ensemble.pod import MAX_COUNTER
from kontrol.master.registry.quota import NAMES
from kontrol.rpc.client import Client
from kontrol.rpc.errors import RemoteError
from kontrol.rpc.security.keyfolder import NEEDS
from kontrol.rpc.security.keys import Keyring

TTL = 10.0
FORGED = "f" * 24  # no clock will ever be past it
SLACK = 2.0  # seconds, for a busy machine
MEGABYTE = 1 << 20


def tokens(folder: Path) -> Path:
    path = folder / "token"
    path.write_text(f"{WRITER}\n", "utf-8")
    return path


def forgery(tier: Tier, ip: str) -> str:
    """A record of the pod `a` that no record of its own is newer than."""
    return keepalive(tier.app, "a", ip, nonce=FORGED, n=MAX_COUNTER, payload="forged")


@contextlib.asynccontextmanager
async def forging(client: Client, raw: str) -> AsyncIterator[None]:
    """Report a forged record meanwhile, as often as an agent would."""

    async def forge() -> None:
        while True:
            await client.call("ping", raw, timeout=DEADLINE)
            await asyncio.sleep(TTL / 10)

    async with asyncio.TaskGroup() as group:
        await client.call("ping", raw, timeout=DEADLINE)
        task = group.create_task(forge())
        yield
        task.cancel()


async def told(operator: Operator, text: str) -> str:
    """Ask for the status until a problem says so; returns the problem."""
    async with asyncio.timeout(DEADLINE):
        while True:
            status = (await operator.get("/v1/status", token=WRITER)).json
            for problem in status["problems"]:
                if text in problem["what"]:
                    return str(problem["what"])
            await asyncio.sleep(0.2)


async def untold(operator: Operator, text: str) -> None:
    """Ask for the status until no problem says so any more."""
    async with asyncio.timeout(DEADLINE):
        while True:
            status = (await operator.get("/v1/status", token=WRITER)).json
            if not any(text in problem["what"] for problem in status["problems"]):
                return
            await asyncio.sleep(0.2)


async def test_a_pod_is_back_within_its_ttl_once_the_forger_stops(tmp_path: Path) -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=0, places=1, TTL=str(TTL))
        operator = await master(tier, 0, tokens(tmp_path))
        daemon, _ = await agent(tier, "a")
        before = await tier.hub.settled({"a"})
        pod = before.pods[0]
        mark = daemon.mark
        async with Client(tier.addresses[0], tier.port) as client:
            await client.call("ping", forgery(tier, pod["ip"]), timeout=DEADLINE)
            stopped = time.monotonic()
            await daemon.logged("refuses the keepalive: Stale", mark)
            await daemon.logged("reporting to .* again", mark)
            assert time.monotonic() - stopped < TTL + SLACK
            after = await tier.hub.settled({"a"}, lambda run: run.pods[0]["nonce"] == pod["nonce"])
            assert after.seqs == before.seqs

            # And immediately, where an operator steps in, whose name is in the ledger.
            await client.call("ping", forgery(tier, pod["ip"]), timeout=DEADLINE)
        answer = await operator.ask("POST", "/v1/forget", token=WRITER, body={"pod": "a"})
        assert answer.status == 200, answer
        assert FORGED in answer.json["message"]
        last = await tier.hub.settled({"a"}, lambda run: run.pods[0]["nonce"] == pod["nonce"])
        assert last.seqs == before.seqs
        [entry] = [
            run
            for run in (await operator.get("/v1/runs", token=WRITER)).json["runs"]
            if run["reason"] == "forget"
        ]
        assert entry["by"] == "REST from 127.0.0.1"


async def test_the_status_names_a_forger_that_has_an_agent_s_key(tmp_path: Path) -> None:
    keys = cluster(tmp_path / "keys")
    masters = part(tmp_path / "master", keys, *NEEDS["master"])
    pods = part(tmp_path / "pod", keys, *NEEDS["agent"])
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=0, places=1, TTL=str(TTL), KEYS=str(masters))
        operator = await master(tier, 0, tokens(tmp_path))
        daemon, _ = await agent(tier, "a", KONTROL_KEYS=str(pods))
        pod = (await tier.hub.settled({"a"})).pods[0]
        thief = Client(tier.addresses[0], tier.port, keys=Keyring.load(pods))
        mark = daemon.mark
        async with thief:
            async with forging(thief, forgery(tier, pod["ip"])):
                what = await told(operator, "report for one registration")
                assert f"nonce {pod['nonce']}/" in what
                assert f"nonce {FORGED}/" in what
                assert what.count("from 127.0.0.1 (agent key ") == 2
                assert what.index(pod["nonce"]) < what.index(FORGED)
                assert not daemon.find("reporting to .* again", mark)
            stopped = time.monotonic()
            await daemon.logged("reporting to .* again", mark)
            assert time.monotonic() - stopped < TTL + SLACK
        await untold(operator, "report for one registration")


async def test_an_unknown_client_s_false_pods_are_stopped_and_honest_pods_go_on(
    tmp_path: Path,
) -> None:
    """With 64 KiB each, as many as it can send: they would fill etcd, and cost the leadership."""
    payload = tmp_path / "payload.json"
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(
            etcd.endpoints,
            masters=0,
            places=1,
            TTL="25",  # a busy machine may take long to answer so many
            FOVER="15",
            BRAKE="0",
            MAX_BYTES="8MiB",
            MAX_JOINS="150",
        )
        operator = await master(tier, 0, tokens(tmp_path))
        daemon, _ = await agent(tier, "a", KONTROL_PAYLOAD=str(payload))
        await tier.hub.settled({"a"})
        mark, refusals = daemon.mark, set()

        async def haunt(client: Client, start: int, size: int) -> None:
            for i in range(start, start + 500):
                ip = f"10.66.{i >> 8}.{i & 255}"
                raw = keepalive(tier.app, f"ghost{i}", ip, payload="x" * size)
                try:
                    await client.call("ping", raw, timeout=DEADLINE)
                except RemoteError as error:
                    refusals.add(error.name)

        async with Client(tier.addresses[0], tier.port) as client, asyncio.TaskGroup() as group:
            tasks = [group.create_task(haunt(client, i * 500, 60_000)) for i in range(4)]
            for number in range(5):
                written = tmp_path / "new"
                written.write_text(json.dumps({"number": number}), "utf-8")
                written.replace(payload)
                await tier.hub.until(
                    lambda number=number: any(  # type: ignore[misc]  # a default, to bind it
                        pod["id"] == "a" and pod["payload"] == {"number": number}
                        for run in tier.hub.runs[-1:]
                        for pod in run.pods
                    ),
                    f"run with payload {number}",
                )
            await asyncio.wait(tasks)
            await haunt(client, 3000, 0)
        assert {"TooManyBytes", "TooManyJoins"} <= refusals <= {*NAMES, "Unavailable"}
        assert "TooManyBytes" in await told(operator, "TooManyBytes")
        assert "KONTROL_MAX_JOINS" in await told(operator, "TooManyJoins")
        metrics = await operator.metrics()
        assert metrics["kontrol_master_record_bytes",] < 8 * MEGABYTE + 64 * 1024
        assert metrics["kontrol_master_bound_refusals_total", "TooManyBytes"] > 0
        assert metrics["kontrol_master_bound_refusals_total", "TooManyJoins"] > 0
        assert metrics["kontrol_master_elections_won_total",] == 1
        status = json.loads(await etcd.ctl("endpoint", "status", "--write-out=json"))
        assert status[0]["Status"]["dbSize"] < 64 * MEGABYTE
        assert not daemon.find("keepalive to .* failed", mark)
        assert not daemon.find("refuses the keepalive", mark)
