"""Names that are not ours, and what else may be wrong with a request that is good HTTP."""

import json

import pytest
from tests.web.support import REMOTE, SECRET, FakeView, ask, client, endpoint, serving

from kontrol.settings import variables as v
from kontrol.web import hosts
from kontrol.web.message import HttpError, Request
from kontrol.web.web import Web

NAMES = hosts.names_of(
    ident="pod-7",
    ip="10.0.0.7",
    hostname="Pod-7.example",
    namespace="games",
    masters=["masters", "kontrol.tools", "a.b.example.org", "10.0.0.1"],
)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "127.0.0.1:8001",
            "10.9.9.9",
            "[::1]",
            "[::1]:8001",
            "[fe80::1%25eth0]:8001",
        ),
        *("localhost", "LocalHost:1", "pod-7", "pod-7.example.", "a.b.example.org"),
        *("masters", "masters:8001", "masters.games.svc.cluster.local"),
        *("kontrol.tools", "kontrol.tools.svc"),
    ],
)
def test_hosts_that_are_ours(host: str) -> None:
    hosts.check(Request("GET", "/", REMOTE, {"host": host}), NAMES)


# What a master of `deploy/` is asked under, with no variable and no annotation set.
MASTERS = hosts.names_of(
    ident="masters-7c9-x2x",
    ip="10.1.2.3",
    hostname="masters-7c9-x2x",
    namespace="games",
    masters=v.NAMES.parse("masters"),
)
LOCAL = "127.0.0.1"


@pytest.mark.parametrize("domain", ["cluster.local", "clusterset.local", "k8s.corp.example", "x"])
@pytest.mark.parametrize("pod", ["", "10-1-2-3.", "masters-7c9-x2x."])
def test_a_service_in_every_form_and_cluster_domain(pod: str, domain: str) -> None:
    """As clients have it that are in the cluster: from elsewhere, by any name that DNS gives it."""
    for form in ("", ".games", ".games.svc", f".games.svc.{domain}", f".games.svc.{domain}."):
        for port in ("", ":8001"):
            host = f"{pod}masters{form}{port}"
            hosts.check(Request("GET", "/", REMOTE, {"host": host}), MASTERS)
    host = f"10-1-2-3.games.pod.{domain}"
    hosts.check(Request("GET", "/", REMOTE, {"host": host.upper()}), MASTERS)


@pytest.mark.parametrize("peer", [REMOTE, LOCAL])
@pytest.mark.parametrize("host", ["10.1.2.3:8001", "10.1.2.3", "[fd00::7]:8001", "192.0.2.9"])
def test_kubelet_and_prometheus_ask_by_address(host: str, peer: str) -> None:
    hosts.check(Request("GET", "/healthz", peer, {"host": host}), MASTERS)


@pytest.mark.parametrize(
    ("host", "peer"),
    [
        ("masters.games.svc.evil.example", LOCAL),  # who forwards a port has a browser
        ("masters.evil.example", REMOTE),
        ("masters.other", REMOTE),
        ("masters.other.svc.cluster.local", REMOTE),
        ("other.games.svc.cluster.local", REMOTE),
        ("10-1-2-4.masters.games.svc", REMOTE),
        ("masters.games.evil.example", REMOTE),
        ("masters.games.pod.cluster.local", REMOTE),
        ("evil.example.svc.cluster.local", REMOTE),
        (".svc.cluster.local", REMOTE),
    ],
)
def test_a_name_that_is_nearly_the_services(host: str, peer: str) -> None:
    with pytest.raises(HttpError) as told:
        hosts.check(Request("GET", "/", peer, {"host": host}), MASTERS)
    assert told.value.status == 421
    assert "KONTROL_NAMES" in told.value.message


@pytest.mark.parametrize("name", ["masters.games.svc", "masters.games.svc.k8s.example"])
def test_a_long_name_of_a_service_has_the_shorter_ones_too(name: str) -> None:
    names = hosts.names_of(ident="a", ip="b", hostname="c", namespace="other", masters=[name])
    for host in (name, "masters", "masters.games", "masters.games.svc.cluster.local"):
        hosts.check(Request("GET", "/", LOCAL, {"host": host}), names)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421),
        ("evil.example:8001", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("pod-7.evil.example", 421),
        ("", 421),
        (":8001", 421),
        ("2130706433", 421),
        ("a b", 400),
        ("*", 400),
        ("masters.games.svc.*", 400),
        ("user@127.0.0.1", 400),
        ("127.0.0.1, evil.example", 400),
        ("[::1", 400),
        ("127.0.0.1:80:80", 400),
        ("evil.example\\@127.0.0.1", 400),
    ],
)
async def test_hosts_that_are_not(host: str, status: int) -> None:
    with pytest.raises(HttpError) as told:
        hosts.check(Request("GET", "/", REMOTE, {"host": host}), NAMES)
    assert told.value.status == status
    web = endpoint(None)
    for target in ("/healthz", "/metrics", "/v1/pods"):
        said = {"host": host}
        assert (await ask(web, "GET", target, peer="127.0.0.1", headers=said))[0] == status


async def test_a_target_with_a_host_in_it_counts_as_the_host() -> None:
    async with serving(endpoint(None)) as port, client(port) as one:
        assert (await one.ask("GET", "http://evil.example/healthz")).status == 421
        assert (await one.ask("GET", "http://127.0.0.1/healthz")).status == 200
        assert (await one.ask("GET", "http://127.0.0.1@evil.example/healthz")).status == 400


async def test_an_agent_says_that_it_is_none() -> None:
    web = Web(names=())
    status, told = await ask(web, "GET", "/v1/pods", peer="127.0.0.1")
    assert (status, json.loads(told)["error"]["name"]) == (404, "NotAMaster")
    assert (await ask(web, "GET", "/readyz"))[0] == 200


async def test_readiness_names_what_fails_and_hides_what_peers_answered_without_a_token() -> None:
    view = FakeView()
    view.checks.append({"name": "tier", "ok": False, "detail": "never", "error": SECRET})
    web = endpoint(None, view)
    status, told = await ask(web, "GET", "/readyz")
    assert status == 503
    assert json.loads(told)["checks"][1] == {"name": "tier", "ok": False, "detail": "never"}
    status, told = await ask(web, "GET", "/readyz", peer="127.0.0.1")
    assert json.loads(told)["checks"][1]["error"] == SECRET


async def test_queries_are_those_of_the_route() -> None:
    web = endpoint(None)
    for query, status in (
        ("", 200),
        ("?", 200),
        ("?limit=5", 200),
        ("?limit=0", 400),
        ("?limit=201", 400),
        ("?limit=%35", 200),
        ("?limit=٣", 400),
        ("?limit=", 400),
        ("?limit=5&limit=5", 400),
        ("?other=5", 400),
        ("?limit", 400),
        ("?" + "&".join(["limit=1"] * 100), 400),
    ):
        assert (await ask(web, "GET", f"/v1/runs{query}", peer="127.0.0.1"))[0] == status, query
    for run in ("0", "x", "-1", "7x", "9" * 400, "%37"):
        assert (await ask(web, "GET", f"/v1/runs/{run}", peer="127.0.0.1"))[0] == 400, run
    assert (await ask(web, "GET", "/v1/runs/8", peer="127.0.0.1"))[0] == 404
    assert (await ask(web, "GET", "/v1/pods/none", peer="127.0.0.1"))[0] == 404
