"""REST of real daemons, for operators, for clients without a token, and for probes."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from docs.rest_page import SAMPLES
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.daemon import Daemon
from tests.e2e.hub import DEADLINE
from tests.e2e.lab import MASTER, Lab, Tier
from tests.e2e.test_network_namespace import network
from tests.process.helpers import descriptors
from tests.support.etcd import EtcdCluster, free_port
from tests.web import fuzz
from tests.web.support import READER, SECRET, WRITER, Received, client

from kontrol.agent import control

FULL = {"Connection": "close"}


class Operator:
    """Asks one process."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    async def ask(
        self, method: str, target: str, *, token: str = "", body: Mapping[str, Any] | None = None
    ) -> Received:
        raw = b"" if body is None else json.dumps(body).encode("utf-8")
        async with client(self.port, self.host) as one:
            return await one.ask(method, target, token=token, body=raw, headers=FULL)

    async def get(self, target: str, *, token: str = "") -> Received:
        return await self.ask("GET", target, token=token)

    async def becomes(self, target: str, status: int) -> Received:
        """Ask until the answer has this status, and return it."""
        async with asyncio.timeout(DEADLINE):
            while True:
                answer = await self.get(target)
                if answer.status == status:
                    return answer
                await asyncio.sleep(0.05)

    async def metrics(self) -> dict[tuple[str, ...], float]:
        """Return the samples: by name, and the values of the labels in the order of their names."""
        text = (await self.get("/metrics")).body.decode("utf-8")
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


async def rest(daemon: Daemon, host: str) -> Operator:
    """Return who asks `daemon`, once it listens."""
    found = await daemon.logged(r"REST on port (\d+)")
    return Operator(host, int(found[1]))


async def master(tier: Tier, i: int, tokens: Path, **more: str) -> Operator:
    port = str(free_port())
    daemon = await tier.master(i, KONTROL_HTTP_PORT=port, KONTROL_TOKEN_FILE=str(tokens), **more)
    return await rest(daemon, tier.addresses[i])


async def agent(tier: Tier, ident: str, **more: str) -> tuple[Daemon, Operator]:
    port = str(free_port())
    bind = {"KONTROL_HTTP_PORT": port, "KONTROL_BIND": "127.0.0.1"}
    daemon = await tier.agent(ident, **bind, **more)
    return daemon, await rest(daemon, "127.0.0.1")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{WRITER}\n{READER}\n", "utf-8")
    return path


@pytest.fixture
def readers(tmp_path: Path) -> Path:
    """Clients with a read-only token at most: none of them can have a run started."""
    path = tmp_path / "readers"
    path.write_text(f"{WRITER[::-1]}\n{READER}\n", "utf-8")
    return path


@pytest.fixture
def payload(tmp_path: Path) -> str:
    path = tmp_path / "payload.json"
    path.write_text(json.dumps({"state": SECRET}), "utf-8")
    return str(path)


def sample(name: str) -> Any:  # noqa: ANN401 - as json.loads
    """Return the page's answer to a route, with what is up to users taken out."""
    document = json.loads(json.dumps(SAMPLES[name]))
    if name == "GET /v1/status":
        document["runs"] = []
        document["ensemble"]["roles"] = None
    if name == "GET /v1/state":
        document["state"] = None
    return document


def fits(told: object, sample: object) -> bool:
    """Whether a document has the fields of a sample; what is null or empty in one fits all."""
    if isinstance(told, dict) and isinstance(sample, dict):
        return set(told) >= set(sample) and all(fits(told[name], sample[name]) for name in sample)
    if isinstance(told, list) and isinstance(sample, list):
        return not (told and sample) or fits(told[0], sample[0])
    return told is None or sample is None or type(told) is type(sample) or sample == "..."


async def test_an_operator_sees_and_does(tokens: Path, payload: str) -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=0, places=2)
        first = await master(tier, 0, tokens)
        second = await master(tier, 1, tokens)
        await agent(tier, "a", KONTROL_PAYLOAD=payload)
        run = await tier.hub.settled({"a"})
        await tier.hub.acknowledgement(run)

        key = (await first.get("/v1/pods")).json["pods"][0]["key"]
        for one in (first, second):  # whichever leads
            found = {}
            for target in ("/v1/status", "/v1/pods", "/v1/state", "/v1/leader", "/v1/runs"):
                found[f"GET {target}"] = (await one.get(target, token=READER)).json
            pod = await one.get(f"/v1/pods/{key}", token=READER)
            entry = await one.get(f"/v1/runs/{run.number}", token=READER)
            found |= {"GET /v1/pods/{key}": pod.json, "GET /v1/runs/{run}": entry.json}
            for name, document in found.items():
                assert fits(document, sample(name)), (name, document)
            assert pod.json["payload"] == {"state": SECRET}
            number = run.number
            state = {"run": number, "acknowledged": number, "state": {"run": number}}
            assert found["GET /v1/state"] == state
            assert found["GET /v1/status"]["current"] is True
            assert found["GET /v1/runs"]["runs"][0]["run"] == run.number
            digest = found["GET /v1/pods"]["digest"]
            assert digest == found["GET /v1/runs"]["runs"][0]["digest"]

        # What is asked of one master is done by the leader, whichever it is.
        tier.hub.history.asked = True
        for one in (first, second):
            answer = await one.ask("POST", "/v1/runs", token=WRITER)
            assert (answer.status, answer.json["done"]) == (200, True), answer
            assert fits(answer.json, sample("POST /v1/runs"))
            await tier.hub.acknowledgement(await tier.hub.started(answer.json["run"]))
            last = (await one.get("/v1/runs?limit=1", token=READER)).json["runs"][0]
            assert (last["run"], last["reason"]) == (answer.json["run"], "asked")
            assert last["by"] == "REST from 127.0.0.1"
        assert (await first.ask("POST", "/v1/release", token=WRITER)).status == 200
        rolled = await second.ask("POST", "/v1/rollback", token=WRITER, body={"run": run.number})
        assert rolled.status == 200, rolled
        assert (await first.get("/v1/state", token=READER)).json["state"] == {"run": run.number}
        none = await first.ask("POST", "/v1/rollback", token=WRITER, body={"run": 999_999})
        assert none.error == (409, "Refused")

        # Without a token, and with the one that only reads: nothing of that.
        count = len(tier.hub.runs)
        for one in (first, second):
            for target in ("/v1/status", "/v1/pods", f"/v1/pods/{key}", "/v1/runs"):
                assert SECRET.encode() not in (await one.get(target)).body
            assert (await one.get("/v1/state")).status == 401
            for target in ("/v1/runs", "/v1/release", "/v1/rollback"):
                body = {"run": run.number} if "back" in target else None
                assert (await one.ask("POST", target, body=body)).status == 401
                assert (await one.ask("POST", target, token=READER, body=body)).status == 403
        assert len(tier.hub.runs) == count


async def test_metrics_and_probes_of_a_tier(tokens: Path) -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=0, places=1, TTL="3")
        leader = await master(tier, 0, tokens)
        daemon, pod = await agent(tier, "a")
        run = await tier.hub.settled({"a"})
        await tier.hub.acknowledgement(run)
        assert (await leader.get("/readyz")).status == 200
        assert (await pod.get("/readyz")).status == 200
        assert (await pod.get("/v1/pods")).error == (404, "NotAMaster")

        told = await leader.metrics()
        assert told["kontrol_master_pods", "test"] == 1
        assert told["kontrol_master_leader",] == 1
        assert told["kontrol_leader_runs_total", "acknowledged"] >= 1
        assert told["kontrol_leader_run_seconds_count",] >= 1
        assert told["kontrol_master_keepalives_total", "written"] >= 1
        mine = await pod.metrics()
        assert mine["kontrol_agent_reporting", tier.name] == 1
        assert mine["kontrol_agent_seq", tier.name] == 0
        assert mine["process_resident_memory_bytes",] > 0

        # Without etcd neither is ready; both are alive, and say what fails.
        await etcd.kill(0)
        failing = (await leader.becomes("/readyz", 503)).json["checks"]
        assert [check["name"] for check in failing if not check["ok"]] == ["etcd"]
        failing = (await pod.becomes("/readyz", 503)).json["checks"]
        assert failing[0]["name"] == f"tier {tier.name}"
        assert "Unavailable" in failing[0]["error"]
        for one in (leader, pod):
            assert (await one.get("/healthz")).status == 200
        assert (await pod.metrics())["kontrol_agent_keepalives_failed_total", tier.name] > 0
        assert (await leader.get("/v1/runs", token=READER)).error == (503, "Unavailable")
        assert (await leader.get("/v1/status", token=READER)).json["etcd"]["ok"] is False
        assert len((await leader.get("/v1/pods", token=READER)).json["pods"]) == 1
        await etcd.start(0)
        await leader.becomes("/readyz", 200)
        await pod.becomes("/readyz", 200)

        # A pod that left is not ready, for as long as its process stays.
        who = await asyncio.to_thread(control.ask_who, tier.control("a"))
        await asyncio.to_thread(control.leave, tier.control("a"), who)
        left = await pod.get("/readyz")
        failing = [check["name"] for check in left.json["checks"] if not check["ok"]]
        assert (left.status, failing) == (503, ["staying"])
        assert (await pod.metrics())["kontrol_agent_leaving",] == 1
        assert await daemon.end() == 0


async def test_a_master_answers_to_the_names_of_its_tier(tokens: Path) -> None:
    async with Lab() as lab:
        tier = await lab.tier(["127.0.0.1:9"], masters=0, places=1)
        annotations = json.dumps({MASTER: "kontrol.tools:8000"})
        one = await master(tier, 0, tokens, KONTROL_ANNOTATIONS=annotations)
        for name, status in (
            ("masters", 200),  # without any annotation, as the manifests' Service is named
            ("masters.default.svc.cluster.local:8001", 200),
            (one.host, 200),
            ("kontrol.tools", 200),
            ("kontrol.tools.svc.cluster.local:8001", 200),
            ("m0", 200),
            ("evil.example", 421),
        ):
            async with client(one.port, one.host) as link:
                answer = await link.ask("GET", "/healthz", headers={"Host": name})
            assert answer.status == status, name


async def test_statsd_hears_of_each_event(tokens: Path) -> None:
    heard: set[bytes] = set()
    news = asyncio.Event()

    class Server(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
            heard.add(data)
            news.set()

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Server, local_addr=("127.0.0.1", 0))
    where = f"localhost:{transport.get_extra_info('sockname')[1]}"
    wanted = ("keepalive_emitted", "callback_invoked", "lock_obtained", "md5_changed")
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=0, places=1)
        await tier.master(0, mode="master,agent", KONTROL_STATSD=where)
        async with asyncio.timeout(DEADLINE):
            while heard != {f"{name},tier=kontrol:1|c".encode("ascii") for name in wanted}:
                news.clear()
                await news.wait()
    transport.close()


async def test_what_cannot_be_served_is_answered_with_its_fix(tokens: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_text("short", "utf-8")
    async with Lab() as lab:
        tier = await lab.tier(["127.0.0.1:9"], masters=0, places=1)
        _, busy = await agent(tier, "a")
        for more, says in (
            ({"KONTROL_HTTP_PORT": str(busy.port)}, "KONTROL_HTTP_PORT to another port, or to 0"),
            ({"KONTROL_TOKEN_FILE": str(short)}, "KONTROL_TOKEN_FILE is .*line 1 is not a token"),
            ({"KONTROL_TLS_CERT": str(short), "KONTROL_TLS_KEY": str(short)}, "KONTROL_TLS_CERT: "),
        ):
            settings = {"KONTROL_HTTP_PORT": str(free_port()), "KONTROL_BIND": "127.0.0.1", **more}
            daemon = await tier.agent("b", **settings)
            await daemon.logged(says)
            assert await daemon.ended() == 2


async def test_random_requests_cost_a_master_neither_pods_nor_memory(readers: Path) -> None:
    """From many addresses, as many as the limits let through."""
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=0, places=1)
        one = await master(tier, 0, readers)
        _, pod = await agent(tier, "a")
        run = await tier.hub.settled({"a"})
        await tier.hub.acknowledgement(run)
        await fuzz.flood(one.port, 500, "first", host=one.host)
        before, open_before = tier.masters[0].rss(), descriptors(tier.masters[0].pid)
        tally = await fuzz.flood(one.port, 2000, "second", host=one.host)
        assert 500 not in tally.answers
        assert tally.answers[200] > 10
        assert (await one.get("/healthz")).status == 200
        assert tier.masters[0].rss() - before < 8 << 20
        assert descriptors(tier.masters[0].pid) <= open_before + 2
        assert (await one.metrics())["kontrol_http_errors_total",] == 0
        assert (await pod.metrics())["kontrol_agent_keepalives_failed_total", tier.name] == 0
        assert tier.hub.runs[-1].number == run.number  # no pod was lost, nothing was run


_ASK = """
import http.client, json, sys
host, port, token, secret = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
for method, target in json.loads(sys.argv[5]):
    link = http.client.HTTPConnection(host, port, timeout=20)
    body = json.dumps({"run": 1}) if method == "POST" else None
    headers = {"Authorization": "Bearer " + token} if token else {}
    link.request(method, target, body, headers)
    answer = link.getresponse()
    print(method, target, answer.status, secret.encode() in answer.read())
"""


async def ask_from(net: str, host: str, port: int, token: str) -> dict[tuple[str, str], str]:
    """Ask for everything from within a network namespace; returns statuses, and what was told."""
    targets = [name.split() for name in SAMPLES]
    wanted = json.dumps([(m, t.format(key="1", run="1")) for m, t in targets])
    process = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", net, sys.executable, "-ISc", _ASK),
        *(host, str(port), token, SECRET, wanted),
        stdout=subprocess.PIPE,
        env={"PATH": os.environ["PATH"]},
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    rows = [line.split() for line in output.decode("utf-8").splitlines()]
    return {(method, target): f"{status} {told}" for method, target, status, told in rows}


@pytest.mark.privileged
@pytest.mark.parametrize("with_tokens", [False, True])
async def test_an_unknown_client_on_the_network_gets_health_and_metrics_alone(
    tokens: Path, payload: str, with_tokens: bool
) -> None:
    async with EtcdCluster() as etcd, network() as net, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=0, places=1)
        port = free_port()
        tier.addresses[0] = net.here
        more = {"KONTROL_TOKEN_FILE": str(tokens)} if with_tokens else {}
        await tier.master(
            0,
            mode="master,agent",
            KONTROL_HTTP_PORT=str(port),
            KONTROL_PAYLOAD=payload,
            **more,
        )
        run = await tier.hub.settled({"m0"})
        await tier.hub.acknowledgement(run)
        count = len(tier.hub.runs)

        found = await ask_from(net.name, net.here, port, "")
        assert len(found) == len(SAMPLES)
        for (_, target), told in found.items():
            refused = "401 False" if with_tokens else "403 False"
            assert told == (refused if target.startswith("/v1") else "200 False"), target
        found = await ask_from(net.name, net.here, port, "wrong-token-0123456789")
        assert all(told.endswith("False") for told in found.values())
        assert len(tier.hub.runs) == count
        if with_tokens:
            found = await ask_from(net.name, net.here, port, READER)
            assert found["GET", "/v1/pods"] == "200 True"
            assert found["POST", "/v1/runs"] == "403 False"
