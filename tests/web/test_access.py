"""Who may see and do what: tokens, loopback, and neither."""

import json
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.web.support import (
    READER,
    REMOTE,
    SECRET,
    WRITER,
    FakeView,
    ask,
    endpoint,
    get,
    post,
    serving,
)

from kontrol.web.access import Access, Tokens
from kontrol.web.routes import ROUTES
from kontrol.web.web import WebError

ANYONE = {"/healthz", "/readyz", "/metrics"}


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{WRITER}\n{READER}\n", "utf-8")
    return path


def put(path: Path, text: str) -> None:
    """Replace a file in one step."""
    fresh = path.with_name("fresh")
    fresh.write_text(text, "utf-8")
    fresh.rename(path)


def targets() -> list[tuple[str, str]]:
    return [(r.method, r.path.format(key="k1", run="7")) for r in ROUTES]


async def test_a_client_without_a_token_gets_health_and_metrics_only() -> None:
    view = FakeView()
    web = endpoint(None, view)
    for method, target in targets():
        status, body = await ask(web, method, target, body=b'{"run": 7}')
        assert status == (200 if target in ANYONE else 403), target
        assert SECRET.encode() not in body
    assert not view.asked


@pytest.mark.parametrize("with_file", [False, True])
async def test_the_token_of_this_user_s_commands_may_do_all(
    token_file: Path, *, with_file: bool
) -> None:
    view = FakeView()
    web = endpoint(token_file if with_file else None, view)
    web.accept("mine")
    async with serving(web) as port:
        assert (await post(port, "/v1/release", token="mine", body={})).status == 200
        assert SECRET.encode() in (await get(port, "/v1/state", token="mine")).body
        refused = await post(port, "/v1/release", token="other", body={})
        expected = (401, "BadToken") if with_file else (403, "NoTokenFile")
        assert refused.error == expected
    assert [kind for kind, *_ in view.asked] == ["release"]


async def test_a_client_must_send_a_token_of_the_token_file(token_file: Path) -> None:
    view = FakeView()
    web = endpoint(token_file, view)
    for method, target in targets():
        status, body = await ask(web, method, target)
        assert status == (200 if target in ANYONE else 401), target
        assert SECRET.encode() not in body
    assert not view.asked


@pytest.mark.parametrize("tokens", [False, True])
async def test_loopback_without_a_token_reads_less_and_changes_nothing(
    token_file: Path, tokens: bool
) -> None:
    view = FakeView()
    async with serving(endpoint(token_file if tokens else None, view)) as port:
        for method, target in targets():
            if method == "POST" or target.startswith(("/v1/state", "/v1/spec")):
                refused = await (post if method == "POST" else get)(port, target)
                assert refused.status == (401 if tokens else 403), target
                assert ("www-authenticate" in refused.headers) == tokens
                message = refused.json["error"]["message"]
                assert "KONTROL_TOKEN_FILE" in message
                assert "loopback" not in message, "that is where it was asked from"
            else:
                answer = await get(port, target)
                assert answer.status == 200, target
                assert SECRET.encode() not in answer.body, target
        pod = (await get(port, "/v1/pods")).json["pods"][1]
        assert set(pod) == {"app", "id", "ip", "key", "nonce", "role", "seq", "zone"}
        assert (await get(port, "/v1/status")).json["runs"][0]["run"] == 7
    assert not view.asked


async def test_a_reader_sees_everything_and_changes_nothing(token_file: Path) -> None:
    view = FakeView()
    async with serving(endpoint(token_file, view)) as port:
        for target in ("/v1/state", "/v1/pods", "/v1/pods/k1", "/v1/runs", "/v1/runs/7"):
            answer = await get(port, target, token=READER)
            assert answer.status == 200
            assert SECRET.encode() in answer.body, target
        for target in ("/v1/runs", "/v1/release", "/v1/rollback", "/v1/forget"):
            refused = await post(port, target, token=READER, body={})
            assert refused.error == (403, "ReadOnlyToken")
            assert "first line" in refused.json["error"]["message"]
    assert not view.asked


async def test_a_writer_may_ask_for_things(token_file: Path) -> None:
    view = FakeView()
    async with serving(endpoint(token_file, view)) as port:
        assert (await post(port, "/v1/runs", token=WRITER)).json == view.answer
        assert (await post(port, "/v1/release", token=WRITER, body={})).status == 200
        assert (await post(port, "/v1/rollback", token=WRITER, body={"run": 7})).status == 200
        assert (await post(port, "/v1/forget", token=WRITER, body={"pod": "p1"})).status == 200
        view.answer = {"request": "1", "done": False, "message": "later"}
        assert (await post(port, "/v1/runs", token=WRITER)).status == 202
        view.answer = {"done": True, "refused": True, "message": "not now", "request": "1"}
        refused = await post(port, "/v1/runs", token=WRITER)
        assert refused.error == (409, "Refused")
        assert refused.json["error"]["message"] == "not now"
    assert [(kind, run) for kind, _, run in view.asked] == [
        ("run", None),
        ("release", None),
        ("rollback", 7),
        ("forget", "p1"),
        ("run", None),
        ("run", None),
    ]
    assert {by for _, by, _ in view.asked} == {"REST from 127.0.0.1"}


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{}", b"7", b"[[", b"null", b"\xff"),
        *(b'{"run": "7"}', b'{"run": true}', b'{"run": 0}', b'{"run": 1.5}', b'{"run": NaN}'),
        *(b'{"run": 7, "more": 1}', b'{"run": 1e400}'),
    ],
)
async def test_a_rollback_names_a_run(token_file: Path, body: bytes) -> None:
    view = FakeView()
    web = endpoint(token_file, view)
    status, told = await ask(web, "POST", "/v1/rollback", token=WRITER, body=body)
    assert status == 400
    assert json.loads(told)["error"]["name"] in ("BadRun", "BadBody")
    status, _ = await ask(web, "POST", "/v1/runs", token=WRITER, body=b'{"run": 7}')
    assert status == 400
    assert not view.asked


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{}", b"7", b'{"pod": 7}', b'{"pod": ""}', b'{"pod": "a\\nb"}', b'{"pod": null}'),
        *(b'{"pod": "p1", "more": 1}', b'{"pod": "%b"}' % (b"x" * 254)),
    ],
)
async def test_what_is_to_be_forgotten_is_named(token_file: Path, body: bytes) -> None:
    view = FakeView()
    web = endpoint(token_file, view)
    status, told = await ask(web, "POST", "/v1/forget", token=WRITER, body=body)
    assert status == 400
    assert json.loads(told)["error"]["name"] in ("BadPod", "BadBody")
    assert not view.asked


@pytest.mark.parametrize(
    "header",
    [
        *("Bearer wrong-token-0123456789", f"Basic {WRITER}", WRITER, "Bearer", "Bearer ", ""),
        *(f"Bearer {WRITER}x", f"Bearer {WRITER[:-1]}", f"Bearer {WRITER}, Bearer {WRITER}"),
        "Bearer \xff",
    ],
)
async def test_a_token_that_is_not_ours_is_refused_even_on_loopback(
    token_file: Path, header: str
) -> None:
    web = endpoint(token_file)
    for peer in (REMOTE, "127.0.0.1", "::1"):
        said = {"authorization": header}
        status, told = await ask(web, "GET", "/v1/pods", peer=peer, headers=said)
        assert (status, json.loads(told)["error"]["name"]) == (401, "BadToken")
        assert (await ask(web, "GET", "/metrics", peer=peer, headers=said))[0] == 200


async def test_wrong_tokens_are_logged_now_and_then_and_never_shown(
    token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    web = endpoint(token_file)
    with caplog.at_level(logging.WARNING):
        for i in range(50):
            await ask(web, "GET", "/v1/pods", peer=f"10.0.0.{i}", token="wrong-token-0123456789")
    assert len(caplog.records) == 1
    assert "wrong-token" not in caplog.text
    assert WRITER not in caplog.text


async def test_a_proxy_on_loopback_does_not_make_its_clients_local() -> None:
    web = endpoint(None)
    assert (await ask(web, "GET", "/v1/pods", peer="127.0.0.1"))[0] == 200
    assert (await ask(web, "GET", "/v1/pods", peer="::1"))[0] == 200
    assert (await ask(web, "GET", "/v1/pods", peer="127.0.0.6"))[0] == 403  # a mesh's sidecar
    for name in ("x-forwarded-for", "x-forwarded-proto", "forwarded", "x-real-ip", "via"):
        said = {name: "127.0.0.1"}
        status, _ = await ask(web, "GET", "/v1/pods", peer="127.0.0.1", headers=said)
        assert status == 403


async def test_tokens_are_read_again_when_they_change(tmp_path: Path) -> None:
    """As Kubernetes renews a Secret: a link is swapped, the path and the size stay."""
    for name, token in (("a", WRITER), ("b", WRITER[::-1])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(token, "utf-8")
    (tmp_path / "data").symlink_to("a")
    web = endpoint(tmp_path / "data" / "token")

    async def status(token: str) -> int:
        return (await ask(web, "GET", "/v1/state", token=token))[0]

    assert (await status(WRITER), await status(WRITER[::-1])) == (200, 401)
    (tmp_path / "new").symlink_to("b")
    (tmp_path / "new").rename(tmp_path / "data")
    assert (await status(WRITER), await status(WRITER[::-1])) == (401, 200)


async def test_a_token_file_that_goes_bad_changes_nothing(
    token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    web = endpoint(token_file)
    put(token_file, "short")
    for _ in range(3):
        assert (await ask(web, "GET", "/v1/state", token=WRITER))[0] == 200
        assert (await ask(web, "GET", "/v1/state", token="short"))[0] == 401
    os.unlink(token_file)  # noqa: PTH108 - local, and quick
    assert (await ask(web, "GET", "/v1/state", token=WRITER))[0] == 200
    complaints = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(complaints) == 2
    assert all("stays in force" in text and "short" not in text for text in complaints)
    put(token_file, READER)
    assert (await ask(web, "GET", "/v1/state", token=WRITER))[0] == 401


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "line 1 is not a token"),
        (b"\n", "line 1 is not a token"),
        (b"hush\n", "line 1 is not a token"),
        (WRITER.encode() + b"\nhush", "line 2 is not a token"),
        (WRITER.encode() + b"\n\n" + READER.encode(), "3 lines"),
        (b"hush hush hush hush", "line 1 is not a token"),
        (b"\xff" * 20, "line 1 is not a token"),
        (WRITER.encode() * 1000, "4096"),
        (f"{WRITER}\n{WRITER}\n".encode(), "the same token"),
    ],
)
def test_a_token_file_that_will_not_do_is_told_without_its_content(
    tmp_path: Path, content: bytes, says: str
) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(WebError) as told:
        endpoint(path)
    assert says in str(told.value)
    assert "KONTROL_TOKEN_FILE" in str(told.value)
    assert "hush" not in str(told.value)


def test_a_token_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WebError, match=r"KONTROL_TOKEN_FILE is .*No such file"):
        endpoint(tmp_path / "nothing")


def test_tokens_with_ends_of_lines_of_other_systems() -> None:
    for raw in (f"{WRITER}\r\n{READER}\r\n", f"{WRITER}\n{READER}", f"\n{WRITER}\n{READER}\n\n"):
        tokens = Tokens.parse(raw.encode())
        assert tokens.access(WRITER) is Access.WRITER
        assert tokens.access(READER) is Access.READER


@given(st.text(), st.binary(max_size=64))
def test_no_other_token_is_ever_taken(text: str, noise: bytes) -> None:
    tokens = Tokens.parse(WRITER.encode())
    assert tokens.access(text) is (Access.WRITER if text == WRITER else None)
    assert tokens.access(noise.decode("latin-1")) is None


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of equal length, all of them, whatever came."""
    seen: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        seen.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    for raw in (WRITER, f"{WRITER}\n{READER}"):
        tokens = Tokens.parse(raw.encode())
        for token in ("", WRITER, READER, "x" * 1000):
            tokens.access(token)
    assert seen == [(32, 32)] * 16
