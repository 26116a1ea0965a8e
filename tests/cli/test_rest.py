"""The client of REST against whatever may answer."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cli.conftest import Run
from tests.cli.master import Master, Reply, listening, status

from kontrol.cli import exchange as rest_exchange
from kontrol.cli import rest as module
from kontrol.cli.address import Endpoint
from kontrol.cli.rest import Rest, RestError, check_ca, read_token
from kontrol.httpclient import Untrusted
from kontrol.settings import SettingsError
from kontrol.settings.private import make_token

CERTS = Path(__file__).parents[1] / "support" / "certs"
TOKEN = "0123456789abcdef"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def at(port: int, scheme: str = "http") -> Endpoint:
    return Endpoint(scheme, "127.0.0.1", port)


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def failure(endpoint: Endpoint, *, timeout: float = 5.0) -> RestError:
    with pytest.raises(RestError) as caught:
        Rest([endpoint], timeout=timeout).get("/v1/status")
    return caught.value


def says(*parts: bytes) -> Callable[[socket.socket], None]:
    """Take a request, and answer with these bytes."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        for part in parts:
            connection.sendall(part)

    return serve


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", "status 200 and application/json, no JSON: "),
        (OK + b"Content-Length: 2\r\n\r\n[]", "JSON of another kind. That is not a Kontrol master"),
        (OK + b"Content-Length: 4\r\n\r\n\xff\xfe{}", "no JSON: not UTF-8 at byte 0"),
        (OK + b"\r\n" + b"[" * 99_999, "no JSON"),
        (OK + b"\r\n" + b'{"a":' * 300 + b"1" + b"}" * 300, "deeper than 200 levels"),
        (OK + b"Content-Length: 99\r\n\r\n{}", "the answer was cut off after 2 bytes"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\n{}", "the answer was cut off"),
        (
            OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            "no proper HTTP came back: illegal chunk",
        ),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n{}", "no proper HTTP came back"),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 70_000, "no proper HTTP came back"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no proper HTTP came back: this is not HTTP: b'SSH-2.0"),
        (b"\x1b[2J\r\n", "this is not HTTP: b'\\x1b[2J"),
        (b"", "closed the connection without an answer: it wants https://"),
        (b"\xff\0\0\0\0\0\0\0\1\x7f", "that is the port of KONTROL_PORT, and REST is on "),
        (b"\x15\3\3\0\2\2\x46", "it speaks TLS: give its URL as https://..., and --ca"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\n\r\n<h1>", "502 and text/html"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: \x1b]0;x\7\r\n\r\n-", "200 and \\x1b]0;x\\x07"),
    ],
)
def test_bad_answers_are_told(raw: bytes, told: str) -> None:
    with listening(says(raw)) as port:
        error = failure(at(port))
        assert told in str(error)
        assert f"http://127.0.0.1:{port}/v1/status" in str(error)
        assert error.exit_status == 4
        assert str(error).replace("\n", "").isprintable()


_HTTP = OK + b"Content-Length: 14\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n" + b'{"a": [1]}\r\n'


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    """Return an answer in HTTP, or what is left of one, with a few bytes that are others."""
    raw = bytearray(_HTTP[: draw(st.integers(0, len(_HTTP)))])
    for _ in range(draw(st.integers(0, 4))):
        at_byte = draw(st.integers(0, len(raw)))
        raw[at_byte : at_byte + 1] = draw(st.binary(max_size=3))
    return bytes(raw)


def test_no_bytes_are_more_than_an_error() -> None:
    """Whatever comes back: an answer or a `RestError` that is fit to be shown, and in time."""
    answers: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answers[-1])

    with listening(serve) as port:

        @settings(deadline=5000, max_examples=300)
        @given(st.binary(max_size=300) | _mutated())
        def ask(raw: bytes) -> None:
            answers.append(raw)
            try:
                answer = Rest([at(port)]).get("/v1/status")
                assert isinstance(answer.document, dict)
            except RestError as error:
                assert str(error).replace("\n", "").isprintable()

        ask()


def test_nothing_listens() -> None:
    port = unused_port()
    error = failure(at(port))
    assert f"connection refused: nothing listens on port {port}" in str(error)
    assert "--master or KONTROL_MASTER names the masters to ask" in str(error)


def test_a_name_that_is_none() -> None:
    error = failure(Endpoint("http", "no-such-host.invalid", 8001))
    assert "its name is not found" in str(error)
    assert "its name is not found" in str(failure(Endpoint("http", f"{'a' * 70}.b", 8001)))


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 ", OK, OK + b"Content-Length: 9999\r\n\r\n"])
def test_a_slow_answer_is_given_up(start: bytes) -> None:
    """Also one that comes byte by byte, each in time."""
    given_up = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(start)
        try:
            while not given_up.wait(0.02):
                if start:
                    connection.sendall(b"a")
        except OSError:
            given_up.set()

    with listening(drip) as port:
        begun = time.monotonic()
        error = failure(at(port), timeout=0.3)
        assert time.monotonic() - begun < 5
        assert "it was asked, and did not answer within 0.3 s" in str(error)
        assert "--timeout waits longer" in str(error)
        given_up.set()
        assert "kontrol status" not in str(error)  # it would end just so


def test_a_huge_answer_is_not_read(monkeypatch: pytest.MonkeyPatch, master: Master) -> None:
    for place in (module, rest_exchange):
        monkeypatch.setattr(place, "LIMIT", 1000)
    master.replies["GET /v1/status"] = Reply({"a": "b" * 2000})
    assert "the answer is over 1000 bytes" in str(failure(at(master.port)))
    master.replies["GET /v1/status"] = Reply(raw=b'{"a":"' + b"b" * 992 + b'"}')
    assert Rest([at(master.port)]).get("/v1/status").document == {"a": "b" * 992}


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(master: Master, code: int) -> None:
    with Master().serving() as other:
        there = {"Location": f"{other.url}/v1/status"}
        master.replies["GET /v1/status"] = Reply(status=code, headers=there)
        with pytest.raises(RestError, match=r"redirected to .*, which is not followed"):
            Rest([at(master.port)], token=TOKEN).get("/v1/status")
        assert other.asked == []


def test_proxies_of_the_environment_are_not_asked(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Master().serving() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert Rest([at(master.port)], token=TOKEN).get("/v1/status").document == status()
        assert proxy.asked == []


def test_masters_are_asked_in_turn_and_the_one_that_answered_stays_first(master: Master) -> None:
    told: list[str] = []
    dead = at(unused_port())
    client = Rest([dead, at(master.port)], tell=told.append)
    assert client.get("/v1/status").endpoint == at(master.port)
    assert [line.partition("/v1")[0] for line in told] == [str(dead), master.url]
    told.clear()
    client.get("/v1/status")
    assert told == [f"{master.url}/v1/status answered"]


def test_a_master_that_cannot_is_left_for_another(master: Master) -> None:
    error = {"error": {"name": "Unavailable", "message": "etcd does not answer"}}
    with Master().serving() as other:
        other.replies = {name: Reply(error, status=503) for name in other.replies}
        both = [at(other.port), at(master.port)]
        assert Rest(both).get("/v1/status").endpoint == at(master.port)
        assert Rest(both).post("/v1/release", {}, wait=1).endpoint == at(master.port)
        with pytest.raises(RestError) as caught:
            Rest(both[:1]).get("/v1/status")
        assert str(caught.value).startswith("no master can do this now:\n  http://")
        assert str(caught.value).endswith("/v1/status: status 503: etcd does not answer")
        with pytest.raises(RestError, match=r"^no master answered:\n"):
            Rest([both[0], at(unused_port())]).get("/v1/status")


@pytest.mark.parametrize("raw", [b"", OK + b"Content-Length: 99\r\n\r\n{}"])
def test_what_may_have_been_done_is_not_asked_of_another(master: Master, raw: bytes) -> None:
    with listening(says(raw)) as port:
        client = Rest([at(port), at(master.port)])
        with pytest.raises(RestError, match="It may have been done all the same") as caught:
            client.post("/v1/runs", {}, wait=1)
        assert caught.value.exit_status == 4
        assert master.asked == []
        assert client.get("/v1/status").endpoint == at(master.port)


def test_what_was_never_sent_is_asked_of_another(master: Master) -> None:
    client = Rest([at(unused_port()), at(master.port)])
    assert client.post("/v1/runs", {}, wait=1).endpoint == at(master.port)


@pytest.mark.parametrize(
    ("code", "name", "exit_status"),
    [
        (400, "BadNumber", 2),
        (404, "NoSuchRun", 3),
        (404, "NotAMaster", 4),
        (421, "UnknownHost", 5),
        (429, "TooMany", 5),
    ],
)
def test_refusals_are_told_in_the_master_s_words(
    master: Master, code: int, name: str, exit_status: int
) -> None:
    error = {"error": {"name": name, "message": "no\x1b[2J, since: not"}}
    master.replies["GET /v1/status"] = Reply(error, status=code)
    caught = failure(at(master.port))
    told = "no\\x1b[2J, since: not"
    if exit_status == 3:
        assert str(caught) == told
    else:
        assert f"/v1/status: status {code}: {told}" in str(caught)
    assert caught.exit_status == exit_status


@pytest.mark.parametrize(
    ("code", "name", "told"),
    [
        (401, "TokenRequired", ["requires a token", "none is set here", "KONTROL_TOKEN_FILE"]),
        (401, "BadToken", ["the token in {file} (KONTROL_TOKEN_FILE) is not one of the masters'"]),
        (403, "ReadOnlyToken", ["{file} (KONTROL_TOKEN_FILE) may only read", "first line"]),
        (403, "NoTokenFile", ["no token file", "as its user", "head -c 32", "restart"]),
    ],
)
def test_who_is_refused_for_a_token_is_told_what_to_set_and_where(
    master: Master,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    *,
    code: int,
    name: str,
    told: list[str],
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    error = {"error": {"name": name, "message": "send it as `Authorization: Bearer`"}}
    master.replies["POST /v1/release"] = Reply(error, status=code)
    given = {} if name in ("TokenRequired", "NoTokenFile") else {"KONTROL_TOKEN_FILE": str(file)}
    assert run("release", **given) == 5
    err = capsys.readouterr().err
    for part in told:
        assert part.format(file=file) in err
    for raw in ("POST", "Bearer", "status 40", "/v1/"):
        assert raw not in err


def test_the_token_of_a_master_of_this_user_is_found_and_sent_there_alone(
    master: Master, run: Run, tmp_path: Path
) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    _, token = make_token(environ, "127.0.0.1", master.port)
    with Master().serving() as other:
        assert run("release", KONTROL_MASTER=f"{master.url}", **environ) == 0
        assert run("release", KONTROL_MASTER=f"{other.url}", **environ) == 0
    assert master.asked[0].headers["Authorization"] == f"Bearer {token}"
    assert "Authorization" not in other.asked[0].headers


@pytest.mark.parametrize("document", [{}, {"error": "x"}, {"error": {"message": "y" * 9999}}])
def test_refusals_without_sense(master: Master, document: object) -> None:
    master.replies["GET /v1/status"] = Reply(document, status=403)
    assert len(str(failure(at(master.port)))) < 1200


def test_the_token_is_sent(master: Master, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\nanother-for-reading\n")
    assert run("state", KONTROL_TOKEN_FILE=str(path)) == 0
    assert master.asked[0].headers["Authorization"] == f"Bearer {TOKEN}"
    path.unlink()
    assert run("state") == 2


@pytest.mark.parametrize("text", ["", "\n", "two words", "é", "a\x1bb", "a" * 5000])
def test_what_is_no_token(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match="KONTROL_TOKEN_FILE") as caught:
        read_token(path)
    assert len(text) < 2 or text not in str(caught.value)
    with pytest.raises(SettingsError, match="no such file"):
        read_token(tmp_path / "missing")
    with pytest.raises(SettingsError, match="is a directory"):
        read_token(tmp_path)
    assert read_token(None) is None


def test_tls_is_verified(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTS / "member.pem", CERTS / "member.key")

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(65536)
            tls.sendall(OK + b"Content-Length: 2\r\n\r\n{}")

    with listening(serve) as port:
        endpoint = at(port, "https")
        assert Rest([endpoint], ca=CERTS / "ca.pem").get("/").document == {}
        with pytest.raises(
            RestError, match=r"its certificate is not accepted: .*--ca names"
        ) as one:
            Rest([endpoint]).get("/")
        assert "A running master serves REST" not in str(one.value)
        assert "it wants https://" in str(failure(at(port)))
        monkeypatch.setattr(module, "addresses", lambda _endpoint: ["127.0.0.1"])
        with pytest.raises(RestError, match=r"Hostname mismatch.*the host must be one that"):
            Rest([Endpoint("https", "elsewhere", port)], ca=CERTS / "ca.pem").get("/")
        monkeypatch.undo()
    with pytest.raises(RestError, match="does not speak TLS: is it plain http"):
        Rest([at(master.port, "https")], ca=CERTS / "ca.pem").get("/")


def test_an_expired_certificate_has_another_fix() -> None:
    told = rest_exchange._why(Untrusted("h", "certificate has expired"), at(1, "https"))
    assert "certificate has expired. Renew" in told
    assert "--ca" not in told


def test_a_master_s_own_certificate_needs_no_authority() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTS / "member.pem", CERTS / "member.key")

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(65536)
            tls.sendall(OK + b"Content-Length: 2\r\n\r\n{}")

    with listening(serve) as port:
        own = at(port, "https")
        assert Rest([own._replace(pin=CERTS / "member.pem")]).get("/").document == {}
        with pytest.raises(RestError, match="its certificate is not accepted"):
            Rest([own._replace(pin=CERTS / "client.pem")]).get("/")
        with pytest.raises(RestError, match="no such file"):
            Rest([own._replace(pin=CERTS / "none.pem")]).get("/")


def test_an_authority_that_is_none(run: Run, tmp_path: Path) -> None:
    check_ca(CERTS / "ca.pem")
    path = tmp_path / "ca"
    assert run("status", "--ca", str(path)) == 2
    path.write_text("nonsense")
    with pytest.raises(SettingsError, match=r"--ca=.*a PEM file with certificates"):
        check_ca(path)


def test_nothing_of_an_answer_steers_the_terminal(
    run: Run, master: Master, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every string of every document is hostile; no output may hold a control character."""
    evil = "\x1b]0;x\x07\x9b2J\r\n\u202eback\x00\x7f"

    def poison(value: object) -> object:
        if isinstance(value, dict):
            return {f"{name}": poison(item) for name, item in value.items()} | {evil: evil}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return value + evil if isinstance(value, str) else value

    for name, reply in master.replies.items():
        master.replies[name] = Reply(poison(json.loads(json.dumps(reply.document))))
    for words in (
        *(["status"], ["pods"], ["pods", "2Ky07"], ["state"], ["runs"], ["explain"]),
        *(["explain", "41"], ["run-now"], ["release"], ["rollback", "42"]),
        ["forget", "2Ky07"],
    ):
        for json_too in ([], ["--json"]):
            assert run(*words, *json_too) in (0, 6)
            out, err = capsys.readouterr()
            text = (out + err).replace("\n", "")
            assert text.isprintable(), (words, ascii(text))
            assert text
