"""What the API refuses, and what the downward API then tells in its place."""

import asyncio
import json
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from tests.boot.cluster import (
    LABELS,
    NODE_PATH,
    POD_PATH,
    TOKEN,
    Cluster,
    pod,
    podinfo,
    running,
    status,
)
from tests.boot.finding import problem, texts
from tests.boot.server import Answer, Hang, Reply

from kontrol.boot import Misconfigured, Refused
from kontrol.boot.cluster import Sources
from kontrol.boot.kubernetes import grant, node_path, pod_path
from kontrol.boot.run import discover

ALLOW_PODS = (
    "kubectl -n games create role kontrol-boot:games:robot --verb=get --resource=pods && "
    "kubectl -n games create rolebinding kontrol-boot:games:robot --role=kontrol-boot:games:robot "
    "--serviceaccount=games:robot"
)
ALLOW_NODES = (
    "kubectl create clusterrole kontrol-node:games:robot --verb=get --resource=nodes && "
    "kubectl create clusterrolebinding kontrol-node:games:robot "
    "--clusterrole=kontrol-node:games:robot --serviceaccount=games:robot"
)
FILES = {"labels": 'app="redis"\nrole="cache"\n', "annotations": ""}


async def test_a_token_that_is_not_accepted(cluster: Cluster, sources: Sources) -> None:
    cluster.tokens = {"another"}
    error = await problem(sources)
    assert isinstance(error, Refused)
    assert error.status == 5
    assert f"{sources.account.folder}/token (401: Unauthorized): has it expired" in str(error)
    assert cluster.paths == [POD_PATH]


async def test_the_token_is_never_shown(cluster: Cluster, sources: Sources) -> None:
    cluster.script[POD_PATH] = [status(403, f"bearer {TOKEN} may not\x1b[2J")]
    assert "(403: bearer *** may not" in str(await problem(sources))


async def test_a_token_is_read_again_for_each_request(cluster: Cluster, sources: Sources) -> None:
    cluster.tokens = {"first"}
    cluster.objects[POD_PATH] = pod(podIP=None)
    token = sources.account.folder / "token"
    token.write_text("first\n", "utf-8")
    async with asyncio.timeout(10):
        task = asyncio.create_task(discover(sources))
        await cluster.asked.wait()
        token.write_text("second\n", "utf-8")
        cluster.tokens = {"second"}
        cluster.objects[POD_PATH] = pod()
        assert texts(await task)["KONTROL_IP"] == "10.1.2.3"


async def test_a_token_replaced_while_it_was_under_way(cluster: Cluster, sources: Sources) -> None:
    cluster.tokens = {"new"}
    cluster.on_request = lambda: (sources.account.folder / "token").write_text("new", "utf-8")
    assert texts(await discover(sources))["KONTROL_IP"] == "10.1.2.3"


async def test_a_pod_that_may_not_read_itself(cluster: Cluster, sources: Sources) -> None:
    cluster.forbidden = {POD_PATH}
    error = await problem(sources)
    assert isinstance(error, Refused)
    assert error.status == 5
    assert 'User "system:serviceaccount:games:robot" cannot get' in str(error)
    assert f"To allow it: {ALLOW_PODS}. Or do without: mount" in str(error)
    assert cluster.paths == [POD_PATH]


async def test_a_refusal_without_words(cluster: Cluster, sources: Sources) -> None:
    cluster.script[POD_PATH] = [Reply(403, "<html>")]
    assert "(403). To allow it: kubectl -n games" in str(await problem(sources))


async def test_a_pod_that_may_not_read_its_node(
    cluster: Cluster, sources: Sources, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.forbidden = {NODE_PATH}
    found = texts(await discover(sources))
    assert (found["KONTROL_IP"], found["KONTROL_HOSTNAME"]) == ("10.1.2.3", "node-1")
    assert "KONTROL_NODE_LABELS" not in found
    [line] = caplog.messages
    assert line.startswith("continuing without the node object: ")
    assert line.endswith(f"To allow it: {ALLOW_NODES}")


@pytest.mark.parametrize("fault", [Hang(), status(500, "oh"), Reply(200, "[]"), b""])
async def test_a_node_that_cannot_be_had_ends_nothing(
    cluster: Cluster,
    sources: Sources,
    fault: Answer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("kontrol.boot.cluster.BRIEF", 0.2)
    cluster.script[NODE_PATH] = [fault] * 100
    assert texts(await discover(sources))["KONTROL_IP"] == "10.1.2.3"
    assert "continuing without the node object" in caplog.text


async def test_no_such_pod(cluster: Cluster, sources: Sources) -> None:
    del cluster.objects[POD_PATH]
    error = await problem(sources)
    assert isinstance(error, Refused)
    assert error.status == 5
    assert f"the Kubernetes API has no {POD_PATH} (404" in str(error)
    assert "set them in POD_NAME and NAMESPACE, by fieldRef metadata.name" in str(error)


async def test_an_api_with_an_untrusted_certificate(tmp_path: Path, sources: Sources) -> None:
    async with running("client") as other:
        error = await problem(replace(sources, environ=other.environ()))
        assert other.served.requests == []
    assert isinstance(error, Refused)
    assert error.status == 5
    assert f"cannot be trusted (127.0.0.1:{other.served.port}" in str(error)
    assert f"{sources.account.folder}/ca.crt does not vouch for it" in str(error)


def test_the_server_is_verified_and_old_authorities_will_do(sources: Sources) -> None:
    context = sources.account.context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("ca.crt", "no certificate", "ca.crt: "),
        ("ca.crt", None, "ca.crt: "),
        ("token", "two\nlines", "token: expected a token"),
        ("token", "", "token: expected a token"),
    ],
)
async def test_a_broken_service_account(
    sources: Sources, name: str, content: str | None, reason: str
) -> None:
    path = sources.account.folder / name
    if content is None:
        path.unlink()
    else:
        path.write_text(content, "utf-8")
    error = await problem(sources)
    assert isinstance(error, Misconfigured)
    assert error.status == 2
    assert reason in str(error)


async def test_a_bad_port_of_the_api(cluster: Cluster, sources: Sources) -> None:
    environ = {**cluster.environ(), "KUBERNETES_SERVICE_PORT": "tcp"}
    error = await problem(replace(sources, environ=environ))
    assert (error.status, "KUBERNETES_SERVICE_PORT='tcp'" in str(error)) == (2, True)


class TestDownward:
    """Without access to the API, or with less of it."""

    @pytest.fixture
    def projected(self, sources: Sources) -> Sources:
        podinfo(sources.podinfo, FILES)
        return sources

    async def test_no_service_account(self, cluster: Cluster, projected: Sources) -> None:
        (projected.account.folder / "token").unlink()
        facts = (await discover(projected)).facts
        assert tuple(facts["KONTROL_LABELS"]) == ('{"app": "redis", "role": "cache"}', "downward")
        assert tuple(facts["KONTROL_IP"]) == ("192.0.2.7", "system")
        assert cluster.paths == []

    async def test_a_refusal_is_a_line(
        self, cluster: Cluster, projected: Sources, caplog: pytest.LogCaptureFixture
    ) -> None:
        cluster.forbidden = {POD_PATH}
        environ = cluster.environ(NODE_NAME="node-1")
        found = texts(await discover(replace(projected, environ=environ)))
        assert json.loads(found["KONTROL_LABELS"]) == LABELS
        assert found["KONTROL_ZONE"] == "eu-1a"
        [line] = caplog.messages
        assert line.startswith("continuing with the downward API: ")
        assert line.endswith(ALLOW_PODS)

    async def test_an_unresponsive_api_is_not_waited_for_long(
        self,
        cluster: Cluster,
        projected: Sources,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("kontrol.boot.cluster.BRIEF", 0.2)
        cluster.script[POD_PATH] = [Hang()] * 100
        environ = cluster.environ(NODE_NAME="node-1")
        found = texts(await discover(replace(projected, environ=environ)))
        assert json.loads(found["KONTROL_LABELS"]) == LABELS
        assert NODE_PATH not in cluster.paths  # neither is the node
        assert "gave up after 0.2 s" in caplog.text

    async def test_what_is_complete_is_not_requested(
        self, cluster: Cluster, projected: Sources
    ) -> None:
        environ = cluster.environ(NODE_NAME="node-1", HOST_IP="10.0.0.1", POD_NAME="redis-0")
        assert texts(await discover(replace(projected, environ=environ)))["KONTROL_ZONE"] == "eu-1a"
        assert cluster.paths == [NODE_PATH]

    async def test_a_broken_file(self, projected: Sources) -> None:
        (projected.podinfo / "labels").write_text("app=redis", "utf-8")
        error = await problem(projected)
        assert (error.status, f"{projected.podinfo}/labels:1" in str(error)) == (2, True)

    async def test_neither_account_nor_labels(self, sources: Sources) -> None:
        (sources.account.folder / "token").unlink()
        error = await problem(sources)
        assert error.status == 2
        assert "automountServiceAccountToken" in str(error)
        assert "downwardAPI volume at /etc/podinfo" in str(error)


def test_what_is_created_for_one_account_is_not_there_for_another() -> None:
    """Or the second account's commands would fail: `AlreadyExists`."""
    created: set[str] = set()
    for account in ("games:robot", "games:other", "game:s-robot", "games-robot:default"):
        words = f'User "system:serviceaccount:{account}" cannot get resource'
        for path in (pod_path("games", "redis-0"), node_path("node-1")):
            for command in grant(path, words).split(" && "):
                words_of = command.split()
                what = " ".join(words_of[words_of.index("create") :][:3])
                assert what not in created
                created.add(what)
