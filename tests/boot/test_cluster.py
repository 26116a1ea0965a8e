"""What Kubernetes tells, through its API over TLS and the downward API."""

import asyncio
import json
import logging
from dataclasses import replace

import pytest
from tests.boot.cluster import (
    LABELS,
    NODE_PATH,
    POD_PATH,
    Cluster,
    pod,
    running,
    status,
)
from tests.boot.finding import hurried, problem, texts
from tests.boot.metadata import AwsServer
from tests.boot.server import Answer, Drip, Hang, Reply, serve
from tests.boot.test_cloud import OF_AWS, providers

from kontrol.boot import NoAddress, Unanswered
from kontrol.boot.cluster import Sources
from kontrol.boot.retry import Retry
from kontrol.boot.run import discover


async def test_everything_from_the_api(cluster: Cluster, sources: Sources) -> None:
    found = await discover(sources)
    assert found.problem is None
    assert {name: tuple(fact) for name, fact in found.facts.items()} == {
        "NAMESPACE": ("games", "api"),
        "KONTROL_ID": ("redis-0", "api"),
        "KONTROL_IP": ("10.1.2.3", "api"),
        "KONTROL_LABELS": (json.dumps(LABELS), "api"),
        "KONTROL_ANNOTATIONS": ('{"kontrol.unity3d.com/master": "masters:8000"}', "api"),
        "KONTROL_HOST": ("10.0.0.1", "api"),
        "KONTROL_HOSTNAME": ("node-1", "api"),
        "KONTROL_NODE_LABELS": (found.facts["KONTROL_NODE_LABELS"].text, "node"),
        "KONTROL_NODE_ANNOTATIONS": ('{"node.alpha.kubernetes.io/ttl": "0"}', "node"),
        "KONTROL_EIP": ("203.0.113.1", "node"),
        "KONTROL_ZONE": ("eu-1a", "node"),
        "KONTROL_REGION": ("eu-1", "node"),
        "KONTROL_INSTANCE_TYPE": ("m5.large", "node"),
    }
    assert cluster.paths == [POD_PATH, NODE_PATH]


async def test_proxies_are_not_asked(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert texts(await discover(sources))["KONTROL_IP"] == "10.1.2.3"


async def test_the_environment_wins(cluster: Cluster, sources: Sources) -> None:
    environ = cluster.environ(KONTROL_ZONE="mine", KONTROL_EIP="", KONTROL_LABELS='{"app": "x"}')
    facts = (await discover(replace(sources, environ=environ))).facts
    assert tuple(facts["KONTROL_ZONE"]) == ("mine", "environment")
    assert tuple(facts["KONTROL_EIP"]) == ("203.0.113.1", "node")
    assert facts["KONTROL_LABELS"].text == '{"app": "x"}'


async def test_the_cloud_fills_in_what_the_node_does_not_tell(
    cluster: Cluster, sources: Sources
) -> None:
    cluster.objects[NODE_PATH] = {
        "metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": "from-node"}}
    }
    async with serve(AwsServer()) as served:
        found = await discover(replace(sources, cloud="aws", providers=providers(served.url)))
    facts = found.facts
    assert tuple(facts["KONTROL_ZONE"]) == ("from-node", "node")
    assert tuple(facts["KONTROL_EIP"]) == (OF_AWS.eip, "aws")
    assert tuple(facts["KONTROL_REGION"]) == ("us-west-2", "aws")
    assert tuple(facts["KONTROL_HOSTNAME"]) == ("node-1", "api")


async def test_a_pod_without_an_address_is_waited_for(
    cluster: Cluster, sources: Sources, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cluster.objects[POD_PATH] = pod(podIP=None)
    async with asyncio.timeout(10):
        task = asyncio.create_task(discover(sources))
        for _ in range(3):  # asked, and asked again
            cluster.asked.clear()
            await cluster.asked.wait()
        assert not task.done()
        cluster.objects[POD_PATH] = pod(podIP="fd00::7")
        assert texts(await task)["KONTROL_IP"] == "fd00::7"
    assert "pod redis-0 of namespace games has no address yet (status.podIP); waiting" in (
        caplog.messages
    )


async def test_a_pod_without_an_address_in_time(cluster: Cluster, sources: Sources) -> None:
    cluster.objects[POD_PATH] = pod(podIP="")
    error = await problem(hurried(sources))
    assert isinstance(error, NoAddress)
    assert error.status == 6
    assert "has no address yet (status.podIP); gave up after 0.2 s" in str(error)


async def test_a_pod_that_was_told_its_address_does_not_wait(
    cluster: Cluster, sources: Sources
) -> None:
    cluster.objects[POD_PATH] = pod(podIP=None)
    environ = cluster.environ(POD_IP="10.9.9.9")
    assert texts(await discover(replace(sources, environ=environ)))["KONTROL_IP"] == "10.9.9.9"
    assert cluster.paths.count(POD_PATH) == 1


@pytest.mark.parametrize(
    "fault",
    [
        status(500, "etcdserver: request timed out"),
        Reply(503, "upstream connect error"),
        Reply(429, ""),
        Reply(200, "<html>"),
        Reply(200, '{"kind": "Pod"'),
        Reply(200, '{"kind": "Pod"}'),
        Reply(200, "[" * 100_000),
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
        b"",
    ],
)
async def test_a_passing_fault_is_waited_out(
    cluster: Cluster,
    sources: Sources,
    caplog: pytest.LogCaptureFixture,
    fault: Answer,
) -> None:
    cluster.script[POD_PATH] = [fault, fault]
    assert texts(await discover(sources))["KONTROL_IP"] == "10.1.2.3"
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    [message] = [record.getMessage() for record in warnings]  # said once, not each time
    assert message.startswith("the Kubernetes API")
    assert message.endswith("; waiting")
    assert cluster.paths.count(POD_PATH) == 3


@pytest.mark.parametrize("fault", [Hang(), Drip(), status(500, "oh"), Reply(200, "no")])
async def test_a_lasting_fault_ends_the_boot(
    cluster: Cluster, sources: Sources, fault: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.script[POD_PATH] = [fault] * 100
    error = await problem(hurried(sources))
    assert isinstance(error, Unanswered)
    assert error.status == 4
    assert "pod redis-0 of namespace games" in str(error)
    assert "gave up after 0.2 s" in str(error)


async def test_an_api_that_is_down(cluster: Cluster, sources: Sources) -> None:
    async with running() as gone:
        pass
    environ = {**cluster.environ(), "KUBERNETES_SERVICE_PORT": str(gone.served.port)}
    error = await problem(replace(hurried(sources), environ=environ))
    assert isinstance(error, Unanswered)
    assert f"127.0.0.1:{gone.served.port}: connection refused" in str(error)


@pytest.mark.parametrize("name", ["POD_NAME", "KONTROL_ID"])
async def test_a_host_with_another_name_than_the_pod(
    cluster: Cluster, sources: Sources, name: str
) -> None:
    system = {"KONTROL_ID": "node-1"}
    environ = cluster.environ(**{name: "redis-0"})
    assert texts(await discover(replace(sources, environ=environ, system=system)))[
        "KONTROL_IP"
    ] == "10.1.2.3"  # fmt: skip


async def test_the_namespace_that_the_environment_names(cluster: Cluster, sources: Sources) -> None:
    path = POD_PATH.replace("games", "other")
    cluster.objects[path] = pod()
    await discover(replace(sources, environ=cluster.environ(NAMESPACE="other")))
    assert cluster.paths[0] == path


async def test_names_cannot_leave_their_place_in_the_path(
    cluster: Cluster, sources: Sources
) -> None:
    environ = cluster.environ(POD_NAME="../../secrets/x?y")
    await problem(replace(sources, environ=environ))
    assert cluster.paths == ["/api/v1/namespaces/games/pods/..%2F..%2Fsecrets%2Fx%3Fy"]


async def test_outside_kubernetes(sources: Sources, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = texts(await discover(replace(sources, environ={})))
    assert found == {"KONTROL_ID": "redis-0", "KONTROL_IP": "192.0.2.7"}
    assert caplog.messages[0].startswith("no Kubernetes here (KUBERNETES_SERVICE_HOST is not set)")
    assert "labels are unknown: kontrol requires app and role" in caplog.text


async def test_debug_queries_nothing(cluster: Cluster, sources: Sources) -> None:
    environ = cluster.environ(KONTROL_MODE="debug", KONTROL_ZONE="z")
    assert texts(await discover(replace(sources, environ=environ))) == {"KONTROL_ZONE": "z"}
    assert cluster.paths == []


async def test_labels_that_kontrol_will_miss_are_a_line(
    cluster: Cluster, sources: Sources, caplog: pytest.LogCaptureFixture
) -> None:
    document = pod()
    document["metadata"] = {"name": "redis-0", "labels": {"app": "redis"}}
    cluster.objects[POD_PATH] = document
    assert (await discover(sources)).problem is None
    assert "labels are {'app': 'redis'}: kontrol requires app and role" in caplog.text


async def test_annotations_longer_than_a_variable_are_cut(
    cluster: Cluster, sources: Sources, caplog: pytest.LogCaptureFixture
) -> None:
    document = pod()
    document["metadata"] = {
        "name": "redis-0",
        "labels": LABELS,
        "annotations": {"a": "b", "applied": "x" * 200_000},
    }
    cluster.objects[POD_PATH] = document
    assert texts(await discover(sources))["KONTROL_ANNOTATIONS"] == '{"a": "b"}'
    assert "applied of KONTROL_ANNOTATIONS is not exported" in caplog.text


def test_pauses_grow_and_are_bounded() -> None:
    retry = Retry(60, jitter=lambda _low, high: high)
    assert [retry.pause(n) for n in (1, 2, 3, 6, 1000)] == [0.25, 0.5, 1.0, 5.0, 5.0]
    assert retry.at_most(5).timeout == 5
    assert retry.at_most(100).timeout == 60
    low = Retry(60, jitter=lambda low, _high: low)
    assert low.pause(1) == 0.125
