"""The HTTP client, on an event loop and without one: the same answers and the same errors."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.boot.server import Answer, Drip, Handler, Hang, Reply, Request, serve
from tests.support.etcd import CERTS

from kontrol import httpclient
from kontrol.httpclient import (
    MIB,
    BadAnswer,
    Closed,
    CutOff,
    Exchange,
    HTTPError,
    NotHTTP,
    Refused,
    Response,
    TimedOut,
    TLSFailed,
    TooLong,
    Unreachable,
    Untrusted,
    authority,
)

Ask = Callable[..., Awaitable[Response]]


async def blocking(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    timeout: float = 5.0,
    limit: int = MIB,
) -> Response:
    """Ask as the commands do, in a thread of its own."""
    _, _, rest = url.partition("://")
    where, slash, path = rest.partition("/")
    host, _, port = where.rpartition(":")
    return await asyncio.to_thread(
        httpclient.ask,
        "127.0.0.1" if host == "localhost" else host,
        int(port),
        httpclient.Request(method, slash + path or "/", headers=headers or {}),
        host=host,
        tls=tls,
        timeout=timeout,
        limit=limit,
    )


@pytest.fixture(params=[httpclient.request, blocking], ids=["loop", "blocking"])
def ask(request: pytest.FixtureRequest) -> Ask:
    carrier: Ask = request.param
    return carrier


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def answering(answer: Answer) -> Handler:
    async def handler(_request: Request) -> Answer:
        return answer

    return handler


async def body_of(ask: Ask, answer: Answer, **options: object) -> bytes:
    async with serve(answering(answer)) as served:
        return (await ask(served.url, **options)).body


async def test_a_request_says_what_it_should_and_nothing_of_proxies(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with serve(answering(Reply(404, "no", {"X-Flavor": "a"}))) as served:
        answer = await ask(f"{served.url}/a/b?c=d", method="PUT", headers={"X-Ours": "1"})
        [asked] = served.requests
    assert (answer.status, answer.body, answer.headers["x-flavor"]) == (404, b"no", "a")
    assert (asked.method, asked.target) == ("PUT", "/a/b?c=d")
    assert asked.headers == {
        "host": f"127.0.0.1:{served.port}",
        "connection": "close",
        "x-ours": "1",
        "content-length": "0",
    }


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirects_are_not_followed(ask: Ask, status: int) -> None:
    async with serve(answering(Reply(status, "", {"Location": "http://127.0.0.1:1/"}))) as served:
        answer = await ask(served.url, headers={"Authorization": "Bearer x"})
        assert (answer.status, answer.headers["location"]) == (status, "http://127.0.0.1:1/")
        assert len(served.requests) == 1


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (CHUNKED + b"3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nA: b\r\n\r\n", b"abcd"),
        (b"HTTP/1.0 200 OK\r\n\r\nabcd", b"abcd"),
        (b"HTTP/1.1 200\r\ncontent-length: 4\r\n\r\nabcdefgh", b"abcd"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", b"a"),
    ],
)
async def test_forms_of_a_body(ask: Ask, raw: bytes, body: bytes) -> None:
    assert await body_of(ask, raw) == body


@pytest.mark.parametrize(
    ("raw", "kind", "reason"),
    [
        (b"", Closed, "closed without an answer"),
        (b"HTTP/1.1 200 OK\r\n", CutOff, "cut off after 0 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", CutOff, "cut off after 4 bytes"),
        (CHUNKED + b"5\r\nab", CutOff, "cut off after 2 bytes"),
        (CHUNKED + b"2\r\nab\r\n", CutOff, "cut off after 2 bytes"),
        (CHUNKED + b"-2\r\nab\r\n", BadAnswer, "illegal chunk header"),
        (CHUNKED + b"xyz\r\n", BadAnswer, "illegal chunk header"),
        (CHUNKED + b"1000001\r\n" + b"x" * 1_100_000, TooLong, "longer than 1048576 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n", TooLong, "longer than"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n", BadAnswer, "bad Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", BadAnswer, "."),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_100_000, TooLong, "longer than"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 140_000, BadAnswer, "buffer too long"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", BadAnswer, "200 headers"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", NotHTTP, "not HTTP: b'SSH-2.0"),
        (b"\xff\0\0\0\0\0\0\0\1\x7f", NotHTTP, "not HTTP"),
        (b"H\x1b[2J", NotHTTP, r"not HTTP: b'H\\x1b\[2J'"),
    ],
)
async def test_what_is_no_complete_answer_is_told_apart(
    ask: Ask, raw: bytes, kind: type[BadAnswer], reason: str
) -> None:
    with pytest.raises(BadAnswer, match=reason) as caught:
        await body_of(ask, raw)
    assert type(caught.value) is kind
    assert caught.value.sent
    assert str(caught.value).startswith("127.0.0.1:")
    assert len(str(caught.value)) < 1000


@contextlib.asynccontextmanager
async def greeting(greeting: bytes) -> AsyncIterator[int]:
    """Accept one connection, send this, and read nothing."""
    loop = asyncio.get_running_loop()

    async def greet() -> None:
        connection, _ = await loop.sock_accept(listener)
        with connection:
            await loop.sock_sendall(connection, greeting)
            await asyncio.Event().wait()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        task = asyncio.create_task(greet())
        try:
            yield listener.getsockname()[1]
        finally:
            task.cancel()
            await asyncio.wait([task])


async def test_another_protocol_is_known_by_its_first_byte(ask: Ask) -> None:
    """A ZeroMQ server greets, and then waits for a greeting."""
    async with greeting(b"\xff") as port:
        with pytest.raises(NotHTTP) as caught:
            await ask(f"http://127.0.0.1:{port}", timeout=30)
    assert caught.value.start == b"\xff"


@pytest.mark.parametrize("answer", [Hang(), Drip()])
async def test_a_server_that_takes_too_long_is_given_up(ask: Ask, answer: Answer) -> None:
    """One deadline for all of it: also for a server whose every byte comes in time."""
    async with serve(answering(answer)) as served:
        begun = time.monotonic()
        with pytest.raises(TimedOut, match=r"connected, but no complete answer within 0.3 s") as it:
            await ask(served.url, timeout=0.3)
        assert time.monotonic() - begun < 5
        assert it.value.sent


async def test_a_server_that_takes_no_request_is_given_up() -> None:
    """It reads nothing of a request that is longer than the buffers between us."""
    asked = httpclient.Request("POST", "/", bytes(30_000_000))
    async with greeting(b"") as port:
        with pytest.raises(TimedOut):
            await asyncio.to_thread(
                httpclient.ask, "127.0.0.1", port, asked, host="127.0.0.1", timeout=1.0
            )


async def test_no_server_is_unreachable(ask: Ask) -> None:
    async with serve(answering(Reply())) as served:
        pass
    with pytest.raises(Refused, match=f"127.0.0.1:{served.port}: connection refused") as caught:
        await ask(served.url)
    assert not caught.value.sent


async def test_a_name_that_there_is_not_is_unreachable() -> None:
    with pytest.raises(Unreachable, match=r"nowhere\.invalid"):
        await httpclient.request("http://nowhere.invalid", timeout=5)


@pytest.mark.parametrize("port", ["99999", "x"])
async def test_a_port_that_there_is_not_is_an_error(port: str) -> None:
    with pytest.raises(HTTPError, match=f"127.0.0.1:{port}: .*[Pp]ort"):
        await httpclient.request(f"http://127.0.0.1:{port}/")


async def test_a_name_is_looked_up(ask: Ask) -> None:
    async with serve(answering(Reply(200, "x"))) as served:
        assert (await ask(f"http://localhost:{served.port}")).body == b"x"


@pytest.mark.parametrize("value", ["a\r\nX-Forged: 1", "a\nb", "\0", "é", "\udcff"])
async def test_what_http_cannot_carry_is_not_sent_and_not_told(ask: Ask, value: str) -> None:
    """It may be a token."""
    async with serve(answering(Reply())) as served:
        with pytest.raises(HTTPError, match="cannot carry") as caught:
            await ask(served.url, headers={"Authorization": f"secret{value}"})
        assert served.requests == []
    assert not caught.value.sent
    assert "secret" not in str(caught.value)


def context(ca: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(CERTS / ca))


def server_context(name: str) -> ssl.SSLContext:
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.load_cert_chain(CERTS / f"{name}.pem", CERTS / f"{name}.key")
    return made


async def test_a_certificate_of_a_known_authority(ask: Ask) -> None:
    async with serve(answering(Reply(200, "x")), server_context("member")) as served:
        assert (await ask(served.url, tls=context("ca.pem"))).body == b"x"


@pytest.mark.parametrize(("certificate", "ca"), [("member", "client.pem"), ("client", "ca.pem")])
async def test_a_certificate_that_is_not_accepted(ask: Ask, certificate: str, ca: str) -> None:
    async with serve(answering(Reply(200, "x")), server_context(certificate)) as served:
        with pytest.raises(Untrusted) as caught:
            await ask(served.url, tls=context(ca))
        assert served.requests == []
        assert not caught.value.sent


async def test_a_server_without_tls(ask: Ask) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(TLSFailed, match=r"no tls: wrong version number"):
            await ask(url, tls=context("ca.pem"))


@pytest.mark.parametrize(
    ("host", "port", "default", "said"),
    [
        ("masters", 8001, 80, "masters:8001"),
        ("masters", 80, 80, "masters"),
        ("fd00::1", 8001, 80, "[fd00::1]:8001"),
        ("fe80::1%eth0", 443, 443, "[fe80::1]"),
    ],
)
def test_what_host_says(host: str, port: int, default: int, said: str) -> None:
    assert authority(host, port, default) == said


@given(
    st.binary(max_size=300)
    | st.lists(
        st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"Content-Length: 3\r\n", b"\r\n", b"abc"])
    ).map(b"".join),
    st.integers(1, 50),
)
def test_any_bytes_are_an_answer_or_an_error(raw: bytes, step: int) -> None:
    """However they are cut, with the same outcome."""

    def outcome(pieces: list[bytes]) -> object:
        exchange = Exchange(httpclient.Request("GET", "/"), "h", limit=1000)
        try:
            for piece in pieces:
                if (answer := exchange.receive(piece)) is not None:
                    return answer
        except BadAnswer as error:
            return type(error)
        raise AssertionError("the end of the connection must end it")

    whole = outcome([raw, b""] if raw else [b""])
    assert outcome([*(raw[i : i + step] for i in range(0, len(raw), step)), b""]) == whole
