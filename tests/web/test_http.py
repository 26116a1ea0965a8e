"""HTTP/1.1 as clients speak it, well and badly. Timeouts and sizes are those of `Limits`."""

import asyncio
import logging
import re
import socket
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.web.fuzz import resident
from tests.web.support import (
    DEADLINE,
    QUICK,
    WRITER,
    Client,
    FakeView,
    Outage,
    client,
    get,
    raw,
    serving,
)

from kontrol.listener import BindError
from kontrol.web.message import Limits
from kontrol.web.web import Web

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def web(view: FakeView | None = None, limits: Limits | None = None) -> Web:
    return Web(
        names={"localhost"},
        view=FakeView() if view is None else view,
        outages=(Outage,),
        limits=limits or Limits(),
    )


def status(answer: bytes) -> int:
    match = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    assert match, answer[:200]
    return int(match[1])


async def test_one_connection_serves_many_requests() -> None:
    async with serving(web()) as port, client(port) as one:
        for _ in range(3):
            assert (await one.ask("GET", "/healthz")).json == {"ok": True}


async def test_requests_sent_ahead_are_answered_in_order() -> None:
    wanted = [b"/healthz", b"/nothing", b"/v1/pods/k1", b"/healthz"] * 20
    data = b"".join(b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % path for path in wanted)
    async with serving(web()) as port:
        answers = await raw(port, data)
    told = [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]
    assert told == [200, 404, 200, 200] * 20


async def test_a_head_is_the_get_without_its_body() -> None:
    async with serving(web()) as port:
        for path in ("/healthz", "/v1/pods", "/v1/status", "/nothing"):
            async with client(port) as one:
                whole = await one.ask("GET", path)
                bare = await one.ask("HEAD", path)
                again = await one.ask("HEAD", path)
            assert (bare.status, again.status, bare.body) == (whole.status, whole.status, b"")
            lengths = {answer.headers.get("content-length") for answer in (whole, bare, again)}
            assert len(lengths) == 1


async def test_what_is_not_there_or_not_for_this_method() -> None:
    async with serving(web()) as port, client(port) as one:
        assert (await one.ask("GET", "/nothing")).error == (404, "NoSuchPath")
        wrong = await one.ask("DELETE", "/v1/runs")
        assert wrong.error == (405, "MethodNotAllowed")
        assert wrong.headers["allow"] == "GET, HEAD, POST, OPTIONS"
        assert (await one.ask("POST", "/healthz")).headers["allow"] == "GET, HEAD, OPTIONS"
        options = await one.ask("OPTIONS", "/v1/release")
        assert (options.status, options.body) == (204, b"")
        assert options.headers["allow"] == "POST, OPTIONS"
        assert "content-length" not in options.headers
        assert (await one.ask("BREW", "/healthz")).status == 405


async def test_every_answer_is_hardened_and_none_opens_to_other_sites() -> None:
    async with serving(web()) as port, client(port) as one:
        for method, path in (("GET", "/healthz"), ("GET", "/nothing"), ("OPTIONS", "/healthz")):
            answer = await one.ask(method, path, headers={"Origin": "http://evil.example"})
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert not any(name.startswith("access-control") for name in answer.headers)
            assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", answer.headers["date"])


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 414),
        (b"GET /" + b"a" * 20_000, 414),
        (HEALTH + b"X: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (HEALTH + b"X: " + b"a" * 8_200 + b"\r\n\r\n", 431),
        (HEALTH + b"X: " + b"a" * 8_000 + b"\r\n\r\n", 200),
        (HEALTH + b"X: y\r\n" * 100 + b"\r\n", 431),
        (HEALTH + b"Content-Length: 5000\r\n\r\n", 413),
        (HEALTH + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (HEALTH + b"Content-Length: -1\r\n\r\n", 400),
        (HEALTH + b"Transfer-Encoding: chunked\r\n\r\n1001\r\n" + b"a" * 0x1001 + b"\r\n", 413),
        (HEALTH + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (HEALTH + b"Transfer-Encoding: gzip\r\n\r\n", 501),
        (HEALTH + b"Host: other\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"HEAD /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000\r\n\r\n", 413),
        (b"GET /healthz HTTP/1.2\r\nHost: 127.0.0.1\r\n\r\n", 200),
        (b"GET /healthz HTTP/2.0\r\nHost: 127.0.0.1\r\n\r\n", 505),
        (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nbad header\r\n\r\n", 400),
        (b"GET  /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400),
        (b"GET /he\x00lthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"GET http://127.0.0.1/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 200),
        (HEALTH + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n", 200),
    ],
)
async def test_bad_and_odd_requests(head: bytes, expected: int) -> None:
    async with serving(web()) as port:
        answer = await raw(port, head)
        assert status(answer) == expected
        assert b"Traceback" not in answer
        assert status(await raw(port, HEALTH + b"\r\n")) == 200


async def test_a_refusal_reaches_a_client_that_still_sends() -> None:
    """Closing immediately would reset the connection, and the reset would overtake the answer."""
    async with serving(web()) as port:
        answer = await raw(port, HEALTH + b"Content-Length: 100000\r\n\r\n" + b"a" * 100_000)
        assert status(answer) == 413


async def test_a_client_that_was_refused_may_end_its_sentence() -> None:
    """A reset would fail a client that reads the answer only when it has sent everything."""
    loop = asyncio.get_running_loop()
    async with serving(web()) as port:
        with socket.create_connection(("127.0.0.1", port)) as one:
            one.settimeout(0)
            await loop.sock_sendall(one, HEALTH + b"Content-Length: 100000\r\n\r\n")
            answer = b""
            async with asyncio.timeout(DEADLINE):
                while part := await loop.sock_recv(one, 65536):
                    answer += part
                for _ in range(10):  # after a reset, the second one fails
                    await loop.sock_sendall(one, b"a" * 10_000)
            assert status(answer) == 413


async def test_a_client_that_asks_before_it_sends_is_told_to_go_on(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(WRITER, "utf-8")
    endpoint = Web(names=(), view=FakeView(), token_file=token_file)
    async with serving(endpoint) as port, client(port) as one:
        headers = {"Expect": "100-continue"}
        answer = await one.ask("POST", "/v1/runs", body=b"{}", headers=headers, token=WRITER)
        assert answer.status == 200


@pytest.mark.parametrize("sent", [b"G", HEALTH, HEALTH + b"Content-Length: 5\r\n\r\nab"])
async def test_a_slow_request_is_given_up(sent: bytes) -> None:
    async with serving(web(limits=replace(QUICK, idle=60))) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        async with asyncio.timeout(DEADLINE):
            answer = await reader.read()
        assert status(answer) == 408
        writer.close()
        await writer.wait_closed()


async def test_a_trickle_does_not_win_time() -> None:
    """The limit is on the whole request, not on each byte of it."""
    async with serving(web(limits=QUICK)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        ended = asyncio.create_task(reader.read())
        async with asyncio.timeout(DEADLINE):
            while not ended.done():
                writer.write(b"G")
                await asyncio.wait([ended], timeout=QUICK.request / 10)
        assert status(await ended) == 408
        writer.close()


async def test_a_silent_connection_is_closed_without_a_word() -> None:
    async with serving(web(limits=replace(QUICK, request=60))) as port:
        for first in (b"", HEALTH + b"\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(first)
            async with asyncio.timeout(DEADLINE):
                answer = await reader.read()
            assert answer.count(b"HTTP/1.1") == bool(first)
            writer.close()


async def test_a_client_that_does_not_read_is_put_off() -> None:
    view = FakeView()
    view.count = 100_000
    endpoint = web(view, QUICK)
    async with serving(endpoint) as port:
        with socket.create_connection(("127.0.0.1", port)) as deaf:
            deaf.sendall(b"GET /v1/pods HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            async with asyncio.timeout(DEADLINE):
                await view.entered.acquire()
                await asyncio.wait(endpoint.listener._tasks)
            assert endpoint.listener.connections == 0


async def test_the_newest_is_served_when_others_hold_all_connections() -> None:
    limits = Limits(connections=4, connections_per_address=4)
    endpoint = web(limits=limits)
    async with serving(endpoint) as port:
        held = [await Client.connect(port) for _ in range(4)]
        for one in held:
            assert (await one.ask("GET", "/healthz")).status == 200
        for _ in range(8):
            assert (await get(port, "/healthz")).status == 200
        assert endpoint.listener.connections <= 4
        assert endpoint.listener.evicted >= 1
        async with asyncio.timeout(DEADLINE):
            assert await held[0].reader.read() == b""  # the oldest gave way
        for one in held:
            await one.close()


async def test_a_crowd_keeps_no_probe_out_and_costs_little_memory() -> None:
    """Thousands of connections from many addresses, each with most of a request."""
    loop = asyncio.get_running_loop()
    async with serving(web(limits=Limits(rate=1e9, burst=1 << 30))) as port:
        assert (await get(port, "/healthz")).status == 200
        before = resident()
        with ExitStack() as stack:
            held = deque[socket.socket]()
            for i in range(2000):
                one = stack.enter_context(socket.socket())
                held.append(one)
                if len(held) > 200:  # more than are served at the same time
                    held.popleft().close()
                one.bind((f"127.9.{i % 200}.{i // 200 + 1}", 0))
                one.settimeout(0)
                await loop.sock_connect(one, ("127.0.0.1", port))
                with suppress(OSError):
                    await loop.sock_sendall(one, HEALTH + b"X: " + b"a" * 8000)
                if i % 100 == 0:
                    assert (await get(port, "/healthz")).status == 200
            assert resident() - before < 10 * 1024  # KiB


async def test_clients_that_read_no_answers_keep_no_probe_out() -> None:
    view = FakeView()
    view.count = 100_000
    endpoint = web(view, Limits(connections=2, connections_per_address=2, send=1000.0))
    async with serving(endpoint) as port:
        with ExitStack() as stack:
            for _ in range(2):
                deaf = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                deaf.sendall(b"GET /v1/pods HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                async with asyncio.timeout(DEADLINE):
                    await view.entered.acquire()
            async with asyncio.timeout(DEADLINE):
                while not await raw(port, HEALTH + b"\r\n"):
                    pass  # until what they do not read fills the system's buffers
        assert endpoint.listener.evicted >= 1


async def test_a_request_with_two_lengths_hides_none() -> None:
    """A proxy that goes by the other length would pass the second on as part of the first."""
    two = b"Content-Length: 50\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    async with serving(web()) as port:
        answer = await raw(port, HEALTH + two + HEALTH + b"\r\n")
        assert status(answer) == 400
        assert b"TwoLengths" in answer
        assert answer.count(b"HTTP/1.1 ") == 1


async def test_an_answer_under_way_is_not_put_out() -> None:
    view = FakeView()
    view.silent = True
    endpoint = web(view, Limits(connections=2, connections_per_address=2))
    async with serving(endpoint) as port:
        busy = [await Client.connect(port) for _ in range(2)]
        asking = [asyncio.create_task(one.ask("GET", "/v1/status")) for one in busy]
        async with asyncio.timeout(DEADLINE):
            for _ in asking:
                await view.entered.acquire()
        assert await raw(port, HEALTH + b"\r\n") == b""  # it is the newest that must go
        for task in asking:
            assert not task.done()
            task.cancel()
        await asyncio.wait(asking)
        for one in busy:
            await one.close()


async def test_an_unexpected_error_is_500_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    view = FakeView()
    view.wrong = RuntimeError("the words of the error")
    endpoint = web(view)
    async with serving(endpoint) as port, client(port) as one:
        with caplog.at_level(logging.CRITICAL, "kontrol.web.app"):
            answer = await one.ask("GET", "/v1/status")
        assert answer.error == (500, "InternalError")
        assert b"words" not in answer.body
        assert endpoint.app.failures == 1
        assert (await one.ask("GET", "/healthz")).status == 200


async def test_a_store_that_is_away_is_503() -> None:
    view = FakeView()
    view.wrong = Outage("etcd is asleep")
    async with serving(web(view)) as port:
        answer = await get(port, "/v1/runs")
        assert answer.error == (503, "Unavailable")
        assert answer.json["error"]["message"] == "etcd does not answer this master: etcd is asleep"


async def test_a_store_that_is_full_is_503_and_said_to_be_full() -> None:
    view = FakeView()
    view.wrong = Outage("free its history")
    full = Web(names={"localhost"}, view=view, outages=(Outage,), full=(Outage,))
    async with serving(full) as port:
        answer = await get(port, "/v1/runs")
        assert answer.error == (503, "Unavailable")
        assert answer.json["error"]["message"] == "etcd is full: free its history"


async def test_a_store_that_is_silent_is_told_before_clients_give_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kontrol.web.handlers._TIMEOUT", 0.1)
    view = FakeView()
    view.silent = True
    async with serving(web(view)) as port:
        for target in ("/v1/runs", "/v1/runs/7"):
            answer = await get(port, target)
            assert answer.error == (503, "Unavailable")
            assert "no answer in time" in answer.json["error"]["message"]


async def test_an_answer_that_does_not_come_is_503() -> None:
    view = FakeView()
    view.silent = True
    async with serving(web(view, QUICK)) as port:
        assert (await get(port, "/v1/status")).error == (503, "Timeout")


async def test_a_flood_is_held_back_and_only_the_flood() -> None:
    async with serving(web(limits=Limits(rate=0.001, burst=5))) as port:
        told = [(await get(port, "/metrics")).status for _ in range(7)]
        assert told == [200] * 5 + [429] * 2
        limited = await get(port, "/metrics")
        assert limited.headers["retry-after"] == "1"
        for probe in ("/healthz", "/readyz"):  # of Kubernetes, from the same address
            assert (await get(port, probe)).status == 200
        assert (await get_from("127.0.0.2", port)) == 200


async def get_from(address: str, port: int) -> int:
    """Ask from another address of loopback."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    metrics = HEALTH.replace(b"healthz", b"metrics")
    async with asyncio.timeout(DEADLINE):
        writer.write(metrics + b"Connection: close\r\n\r\n")
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return status(answer)


async def test_ten_thousand_pods_are_sent_in_parts() -> None:
    view = FakeView()
    view.count = 10_000
    async with serving(web(view)) as port:
        answer = await get(port, "/v1/pods")
        assert answer.headers["transfer-encoding"] == "chunked"
        assert [pod["seq"] for pod in answer.json["pods"]] == list(range(10_000))
        assert status(await raw(port, b"GET /v1/pods HTTP/1.0\r\n\r\n")) == 200


async def test_a_port_that_is_taken_is_reported_with_the_fix() -> None:
    async with serving(web()) as port:
        with pytest.raises(BindError, match=r"another process listens there.*KONTROL_HTTP_PORT"):
            await web().bind("127.0.0.1", port)
    with pytest.raises(BindError, match=r"192\.0\.2\.1 port 0 for REST"):
        await web().bind("192.0.2.1", 0)
    with pytest.raises(BindError, match="before bind"):
        await web().serve()


async def test_it_listens_where_it_is_told_to() -> None:
    for host, address in (("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("localhost", "localhost")):
        async with serving(web(), host) as port:
            assert (await get(port, "/healthz", host=address)).status == 200
    with pytest.raises(BindError, match=r"nothing\.invalid port 0 for REST: .*KONTROL_BIND"):
        await web().bind("nothing.invalid", 0)


async def test_all_addresses_means_ipv6_too() -> None:
    endpoint = web()
    async with serving(endpoint, "*") as port:
        for host in ("127.0.0.1", "::1"):
            assert (await get(port, "/healthz", host=host)).status == 200


async def test_nothing_is_left_when_it_ends() -> None:
    """Whatever its connections are in the middle of."""
    view = FakeView()
    view.silent = True
    endpoint = web(view)
    async with serving(endpoint) as port:
        idle, partial, busy = [await Client.connect(port) for _ in range(3)]
        assert (await idle.ask("GET", "/healthz")).status == 200
        partial.writer.write(b"GET /hea")
        asking = asyncio.create_task(busy.ask("GET", "/v1/status"))
        async with asyncio.timeout(DEADLINE):
            await view.entered.acquire()
    assert endpoint.listener.connections == 0
    assert not endpoint.listener._tasks
    for one in (idle, partial):
        async with asyncio.timeout(DEADLINE):
            assert await one.reader.read() == b""
    with pytest.raises(ConnectionError):
        await asking
    for one in (idle, partial, busy):
        await one.close()
