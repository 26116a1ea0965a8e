"""`--timeout` bounds all that boot looks for together, on virtual time."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from tests.boot.cluster import NODE_PATH, POD_PATH, account, pod
from tests.support.simloop import virtual

from kontrol import httpclient as http
from kontrol.boot.cluster import Sources
from kontrol.boot.facts import Machine
from kontrol.boot.kubernetes import ServiceAccount
from kontrol.boot.retry import Retry
from kontrol.boot.run import discover


class Silent:
    """A cloud that is there, and takes its time."""

    def matches(self, machine: Mapping[str, str]) -> bool:
        return bool(machine)

    async def describe(self, timeout: float) -> Machine:
        await asyncio.sleep(timeout + 1)
        return Machine()


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(
        environ={"KUBERNETES_SERVICE_HOST": "192.0.2.1"},
        system={"KONTROL_ID": "redis-0", "KONTROL_IP": "192.0.2.7"},
        machine={"sys_vendor": "Slow"},
        retry=Retry(1),
        account=ServiceAccount(account(tmp_path / "account")),
        podinfo=tmp_path / "podinfo",
        providers={"slow": Silent},
    )


@pytest.mark.parametrize("total", [0.1, 1.0, 4.0, 60.0])
@pytest.mark.parametrize("answers_after", [0.0, 0.7, 100.0])
@virtual
async def test_it_bounds_the_whole(
    sources: Sources, monkeypatch: pytest.MonkeyPatch, total: float, answers_after: float
) -> None:
    """A pod that is late or never known, a node and a cloud that are never."""

    async def request(url: str, *, timeout: float, **_: object) -> http.Response:
        after = answers_after * total if url.endswith(POD_PATH) else 1000.0
        if timeout < after - (loop.time() - start):
            await asyncio.sleep(timeout)
            raise http.TimedOut(url, f"no complete answer within {timeout:g} s")
        await asyncio.sleep(max(0.0, after - (loop.time() - start)))
        asked.append(url)
        return http.Response(200, {}, json.dumps(pod()).encode("utf-8"))

    asked: list[str] = []
    monkeypatch.setattr("kontrol.boot.kubernetes.request", request)
    loop = asyncio.get_running_loop()
    start = loop.time()
    found = await discover(replace(sources, retry=Retry(total)))
    assert loop.time() - start <= total + 1e-6
    if answers_after < 1:
        assert found.problem is None
        assert found.facts["KONTROL_IP"].text == "10.1.2.3"
    else:
        assert f"gave up after {total:g} s" in str(found.problem)
    assert NODE_PATH not in asked


@virtual
async def test_the_reason_is_not_that_of_an_attempt_cut_short(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API answers badly, and then not at all for the little that is left."""

    async def request(url: str, *, timeout: float, **_: object) -> http.Response:
        if not asked:
            asked.append(url)
            return http.Response(503, {}, b"")
        await asyncio.sleep(timeout)
        raise http.TimedOut(url, f"no complete answer within {timeout:g} s")

    asked: list[str] = []
    monkeypatch.setattr("kontrol.boot.kubernetes.request", request)
    found = await discover(replace(sources, retry=Retry(4)))
    assert "status 503; gave up after 4 s" in str(found.problem)
