import asyncio
import logging
from functools import partial
from pathlib import Path

import pytest
from tests.boot.metadata import (
    AWS_IDENTITY,
    AZURE_INSTANCE,
    AwsServer,
    AzureServer,
    GoogleServer,
    captive,
)
from tests.boot.server import Answer, Drip, Handler, Hang, Reply, Request, serve

from kontrol.boot.cloud import _UNSURE as UNSURE
from kontrol.boot.cloud import PROVIDERS, check_name, detect, firmware
from kontrol.boot.cloud.aws import Aws
from kontrol.boot.cloud.azure import Azure
from kontrol.boot.cloud.google import Google
from kontrol.boot.cloud.provider import BadMetadata, MakeProvider, Provider
from kontrol.boot.facts import Machine
from kontrol.httpclient import HTTPError
from kontrol.settings.resolve import resolve

AWS = {"sys_vendor": "Amazon EC2", "bios_version": "1.0"}
XEN = {"sys_vendor": "Xen", "bios_version": "4.11.amazon"}
GOOGLE = {"sys_vendor": "Google", "product_name": "Google Compute Engine"}
AZURE = {
    "sys_vendor": "Microsoft Corporation",
    "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77",
}
HYPER_V = {"sys_vendor": "Microsoft Corporation", "product_name": "Virtual Machine"}
OF_AWS = Machine(
    hostname="ip-10-158-112-84.us-west-2.compute.internal",
    eip="203.0.113.25",
    zone="us-west-2b",
    region="us-west-2",
    instance_type="t2.micro",
)


def providers(url: str) -> dict[str, MakeProvider]:
    """The table, with every service at `url`, as they all are at the link-local address."""
    return {
        "aws": partial(Aws, url),
        "aws-v1": partial(Aws, url, token=False),
        "google": partial(Google, url),
        "azure": partial(Azure, url),
    }


async def find(
    handler: Handler, machine: dict[str, str], choice: str = "auto"
) -> tuple[str, Machine] | None:
    async with serve(handler) as served:
        return await detect(choice, machine, providers(served.url))


@pytest.fixture(autouse=True)
def retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a busy machine be slow where time is not the matter."""
    monkeypatch.setattr("kontrol.boot.cloud._SURE", 20.0)
    monkeypatch.setattr("kontrol.boot.cloud._UNSURE", 20.0)


def test_a_row_of_the_table_is_all_that_naming_a_cloud_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """KONTROL_CLOUD takes it, and nothing that is not in the table."""
    monkeypatch.setitem(PROVIDERS, "oracle", Google)
    for name in ("auto", "none", *PROVIDERS):
        resolved = resolve({"KONTROL_CLOUD": name}, {})
        check_name(resolved)
        assert resolved.mistakes == []
    resolved = resolve({"KONTROL_CLOUD": "asure"}, {})
    check_name(resolved)
    [mistake] = resolved.mistakes
    assert str(mistake) == (
        "KONTROL_CLOUD='asure': expected one of auto, none, aws, aws-v1, google, azure, oracle "
        "(did you mean azure?)"
    )


@pytest.mark.parametrize("machine", [AWS, XEN, {}])
async def test_aws(machine: dict[str, str]) -> None:
    assert await find(AwsServer(), machine) == ("aws", OF_AWS)


async def test_aws_without_a_public_address() -> None:
    server = AwsServer()
    del server.paths["/latest/meta-data/public-ipv4"]
    answer = await find(server, AWS)
    assert answer is not None
    assert (answer[1].eip, answer[1].zone) == (None, "us-west-2b")


async def test_version_1_of_aws_is_asked_on_demand_only() -> None:
    async with serve(AwsServer(version_1=True)) as served:
        assert await detect("aws-v1", {}, providers(served.url)) == ("aws-v1", OF_AWS)
        assert {request.method for request in served.requests} == {"GET"}
    assert await find(AwsServer(), {}, "aws-v1") is None


async def test_google() -> None:
    expected = Machine(
        hostname="node-1.europe-west1-b.c.games.internal",
        eip="198.51.100.7",
        zone="europe-west1-b",
        region="europe-west1",
        instance_type="e2-medium",
    )
    for machine in (GOOGLE, {}):
        assert await find(GoogleServer(), machine) == ("google", expected)


async def test_google_where_gke_keeps_part_of_it_to_itself() -> None:
    hidden = ("machine-type", "network-interfaces/0/access-configs/0/external-ip")
    answer = await find(GoogleServer(hidden), GOOGLE)
    assert answer is not None
    assert answer[1].zone == "europe-west1-b"
    assert (answer[1].instance_type, answer[1].eip) == (None, None)


async def test_a_server_that_does_not_say_that_it_is_googles() -> None:
    async def handler(request: Request) -> Answer:
        return Reply(200, "projects/1/zones/europe-west1-b")

    assert await find(handler, GOOGLE) is None


async def test_azure() -> None:
    expected = Machine(
        hostname="examplevmname",
        eip="203.0.113.9",
        zone="westus-1",
        region="westus",
        instance_type="Standard_A3",
    )
    for machine in (AZURE, {}):
        assert await find(AzureServer(), machine) == ("azure", expected)


async def test_azure_without_zone_and_public_address() -> None:
    compute = {**AZURE_INSTANCE["compute"], "zone": ""}
    instance = {"compute": compute, "network": {"interface": []}}
    answer = await find(AzureServer(instance), AZURE)
    assert answer is not None
    assert (answer[1].zone, answer[1].region, answer[1].eip) == (None, "westus", None)


@pytest.mark.parametrize("machine", [HYPER_V, {"sys_vendor": "QEMU"}])
async def test_a_machine_of_another_maker_asks_nothing(machine: dict[str, str]) -> None:
    async with serve(AwsServer()) as served:
        assert await detect("auto", machine, providers(served.url)) is None
        assert served.requests == []


async def test_none_asks_nothing() -> None:
    async with serve(AwsServer()) as served:
        assert await detect("none", AWS, providers(served.url)) is None
        assert served.requests == []


async def test_a_named_cloud_is_asked_whatever_the_machine() -> None:
    answer = await find(AzureServer(), {"sys_vendor": "QEMU"}, "azure")
    assert answer is not None
    assert answer[0] == "azure"


async def hang(_request: Request) -> Answer:
    return Hang()


async def drip(_request: Request) -> Answer:
    return Drip()


async def half(_request: Request) -> Answer:
    return b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"


async def wrong_json(_request: Request) -> Answer:
    return Reply(200, '{"region": ', {"Metadata-Flavor": "Google"})


async def other_json(_request: Request) -> Answer:
    text = '{"region": ["x"], "compute": {"location": 1}, "zone": null}'
    return Reply(200, text, {"Metadata-Flavor": "Google"})


async def failing(_request: Request) -> Answer:
    return Reply(500, "oh")


@pytest.mark.parametrize("handler", [hang, drip, half, wrong_json, other_json, failing, captive])
@pytest.mark.parametrize("kind", [Aws, Google, Azure])
async def test_a_service_that_is_not_one_is_no_machine(
    kind: type[Aws] | type[Google] | type[Azure], handler: Handler
) -> None:
    async with serve(handler) as served:
        provider: Provider = kind(served.url)
        with pytest.raises((BadMetadata, HTTPError)) as caught:
            await provider.describe(0.3)
    assert str(caught.value)


@pytest.mark.parametrize("handler", [hang, drip, half, wrong_json, other_json, failing, captive])
async def test_a_fault_is_one_line_and_soon_over(
    handler: Handler, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kontrol.boot.cloud._UNSURE", UNSURE)
    caplog.set_level(logging.INFO)
    async with serve(handler) as served:
        loop = asyncio.get_running_loop()
        start = loop.time()
        assert await detect("auto", {}, providers(served.url)) is None
        assert loop.time() - start < UNSURE + 1.3  # what a busy machine adds
    assert UNSURE < 1
    [record] = caplog.records
    assert record.getMessage().startswith("no cloud found: aws")
    assert record.levelno == logging.INFO


async def test_where_nothing_listens_it_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serve(captive) as served:
        pass
    assert await detect("auto", {}, providers(served.url)) is None
    assert caplog.messages == [
        f"no cloud found: aws, google, azure: 127.0.0.1:{served.port}: connection refused"
    ]


async def test_a_token_that_never_comes_is_explained(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kontrol.boot.cloud._SURE", 0.2)
    assert await find(hang, AWS) is None
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "hop limit is 1" in record.getMessage()
    assert "--http-put-response-hop-limit 2" in record.getMessage()


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (403, "", "turned off for this instance"),
        (404, "", "no token: status 404"),
        (200, "two\r\nlines", "no token"),
        (200, "", "no token"),
    ],
)
async def test_a_token_that_is_none(
    status: int, body: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(_request: Request) -> Answer:
        return Reply(status, body)

    assert await find(handler, AWS) is None
    assert reason in caplog.text


async def test_what_is_no_name_or_address_is_left_out() -> None:
    server = AwsServer()
    server.paths["/latest/meta-data/public-ipv4"] = "<html>"
    server.paths["/latest/meta-data/local-hostname"] = "two words"
    answer = await find(server, AWS)
    assert answer is not None
    assert answer[1] == Machine(
        zone="us-west-2b", region="us-west-2", instance_type=AWS_IDENTITY["instanceType"]
    )


async def test_what_aws_need_not_tell_may_hang() -> None:
    server = AwsServer()

    async def handler(request: Request) -> Answer:
        return Hang() if "meta-data" in request.path else await server(request)

    async with serve(handler) as served:
        machine = await Aws(served.url).describe(2.0)
    assert (machine.region, machine.eip) == ("us-west-2", None)


async def test_what_google_need_not_tell_may_hang() -> None:
    server = GoogleServer()

    async def handler(request: Request) -> Answer:
        return await server(request) if request.path.endswith("/zone") else Hang()

    async with serve(handler) as served:
        machine = await Google(served.url).describe(2.0)
    assert (machine.zone, machine.eip) == ("europe-west1-b", None)


def test_the_firmwares_fields(tmp_path: Path) -> None:
    (tmp_path / "sys_vendor").write_text("Amazon EC2\n", "utf-8")
    (tmp_path / "product_name").write_text("\n", "utf-8")
    (tmp_path / "bios_version").mkdir()
    assert firmware(tmp_path) == {"sys_vendor": "Amazon EC2"}
    assert firmware(tmp_path / "absent") == {}
