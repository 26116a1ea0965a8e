import asyncio
import ssl

import pytest
from tests.boot.server import Answer, Drip, Handler, Hang, Reply, Request, serve
from tests.support.etcd import CERTS

from kontrol.boot.http import Garbled, HTTPError, Silent, Unreachable, Untrusted, request

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def answering(answer: Answer) -> Handler:
    async def handler(_request: Request) -> Answer:
        return answer

    return handler


async def body_of(answer: Answer) -> bytes:
    async with serve(answering(answer)) as served:
        return (await request(served.url)).body


async def test_a_request_says_what_it_should_and_nothing_of_proxies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with serve(answering(Reply(404, "no", {"X-Flavor": "a"}))) as served:
        answer = await request(f"{served.url}/a/b?c=d", method="PUT", headers={"X-Ours": "1"})
        [asked] = served.requests
    assert (answer.status, answer.body, answer.headers["x-flavor"]) == (404, b"no", "a")
    assert (asked.method, asked.target) == ("PUT", "/a/b?c=d")
    assert asked.headers == {
        "host": f"127.0.0.1:{served.port}",
        "connection": "close",
        "x-ours": "1",
        "content-length": "0",
    }


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (CHUNKED + b"3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nA: b\r\n\r\n", b"abcd"),
        (b"HTTP/1.0 200 OK\r\n\r\nabcd", b"abcd"),
        (b"HTTP/1.1 200\r\ncontent-length: 4\r\n\r\nabcdefgh", b"abcd"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
async def test_forms_of_a_body(raw: bytes, body: bytes) -> None:
    assert await body_of(raw) == body


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "broke off"),
        (b"HTTP/1.1 200 OK\r\n", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "broke off"),
        (CHUNKED + b"5\r\nab", "broke off"),
        (CHUNKED + b"2\r\nab\r\n", "broke off"),
        (CHUNKED + b"-2\r\nab\r\n", "length is '-2'"),
        (CHUNKED + b"xyz\r\n", "invalid literal"),
        (CHUNKED + b"fffffff\r\n", "longer than"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n", "longer than"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n", "length is '1_0'"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_100_000, "longer than"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000, "limit"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "got more than"),
    ],
)
async def test_what_is_no_whole_answer_is_garbled(raw: bytes, reason: str) -> None:
    with pytest.raises(Garbled, match=reason) as caught:
        await body_of(raw)
    assert str(caught.value).startswith("127.0.0.1:")


async def test_a_server_that_says_nothing_is_silent() -> None:
    async with serve(answering(Hang())) as served:
        with pytest.raises(Silent, match=r"connected, but no whole answer within 0.05 s"):
            await request(served.url, timeout=0.05)


async def test_a_server_that_drips_is_silent_in_the_end() -> None:
    async with serve(answering(Drip())) as served:
        with pytest.raises(Silent):
            await request(served.url, timeout=0.3)


async def test_no_server_is_unreachable() -> None:
    async with serve(answering(Reply())) as served:
        pass
    with pytest.raises(Unreachable, match=f"127.0.0.1:{served.port}: connection refused"):
        await request(served.url)


async def test_a_name_that_there_is_not_is_unreachable() -> None:
    with pytest.raises(Unreachable, match=r"nowhere\.invalid"):
        await request("http://nowhere.invalid", timeout=5)


async def test_a_name_is_looked_up() -> None:
    async with serve(answering(Reply(200, "x"))) as served:
        assert (await request(f"http://localhost:{served.port}")).body == b"x"


def context(ca: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(CERTS / ca))


def server_context(name: str) -> ssl.SSLContext:
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.load_cert_chain(CERTS / f"{name}.pem", CERTS / f"{name}.key")
    return made


async def test_a_certificate_that_is_vouched_for() -> None:
    async with serve(answering(Reply(200, "x")), server_context("member")) as served:
        assert (await request(served.url, tls=context("ca.pem"))).body == b"x"


@pytest.mark.parametrize(("certificate", "ca"), [("member", "client.pem"), ("client", "ca.pem")])
async def test_a_certificate_that_is_not(certificate: str, ca: str) -> None:
    async with serve(answering(Reply(200, "x")), server_context(certificate)) as served:
        with pytest.raises(Untrusted):
            await request(served.url, tls=context(ca))
        assert served.requests == []


async def test_a_server_without_tls() -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(HTTPError, match=r"no tls: wrong version number"):
            await request(url, tls=context("ca.pem"))
