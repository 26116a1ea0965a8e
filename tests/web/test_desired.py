"""REST of the desired state: routes, conditions, refusals by name, large bodies."""

import json
from pathlib import Path

import pytest
from tests.web.support import (
    READER,
    SECRET,
    WRITER,
    FakeView,
    ask,
    client,
    endpoint,
    post,
    raw,
    serving,
)

from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.desired import MAX_DEPTH, MAX_VALUE, Expected
from kontrol.web.message import Limits


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{WRITER}\n{READER}\n", "utf-8")
    return path


async def test_readers_see_it_and_its_authors(token_file: Path) -> None:
    view = FakeView()
    web = endpoint(token_file, view)
    by = {"by": "REST from 10.0.0.9", "at": "2026-01-01T00:00:00Z"}
    for token in (READER, WRITER):
        status, body = await ask(web, "GET", "/v1/spec", token=token)
        assert (status, json.loads(body)["spec"]) == (200, {"replicas": 3, "secret": SECRET})
        status, body = await ask(web, "GET", "/v1/spec/replicas", token=token)
        assert json.loads(body) == {"key": "replicas", "value": 3, "revision": 7, **by}
    for target in ("/v1/spec", "/v1/spec/replicas"):
        assert (await ask(web, "GET", target, peer="127.0.0.1"))[0] == 401
    for target in ("/v1/spec/none", "/v1/spec/%2e", "/v1/spec/" + "x" * 900):
        status, body = await ask(web, "GET", target, token=READER)
        assert (status, json.loads(body)["error"]["name"]) == (404, "NoSuchKey")
    view.damaged = True
    status, body = await ask(web, "GET", "/v1/spec", token=READER)
    assert (status, json.loads(body)["error"]["name"]) == (409, "SpecDamaged")


async def test_only_writers_change_it(token_file: Path) -> None:
    view = FakeView()
    web = endpoint(token_file, view)
    body = b'{"key": "a", "value": 1}'
    for target in ("/v1/set", "/v1/unset"):
        assert (await ask(web, "POST", target, token=READER, body=body))[0] == 403
        assert (await ask(web, "POST", target, body=body))[0] == 401
    assert not view.spec_asked


@pytest.mark.parametrize(
    ("target", "body", "asked"),
    [
        (
            "/v1/set",
            {"key": "a", "value": {"b": 1.0, "a": None}},
            ("a", b'{"a":null,"b":1.0}', None),
        ),
        ("/v1/set", {"key": "a", "value": None, "if-is": None}, ("a", b"null", Expected(b"null"))),
        ("/v1/set", {"key": "a", "value": 1, "if-is": [2, "x"]}, ("a", b"1", Expected(b'[2,"x"]'))),
        ("/v1/set", {"key": "a", "value": "", "if-absent": True}, ("a", b'""', Expected(None))),
        (
            "/v1/set",
            {"key": "a", "value": 1, "if-absent": False, "if-is": 2},
            ("a", b"1", Expected(b"2")),
        ),
        ("/v1/unset", {"key": "a"}, ("a", None, None)),
        ("/v1/unset", {"key": "a", "if-is": 0}, ("a", None, Expected(b"0"))),
    ],
)
async def test_what_is_asked_for(
    token_file: Path, target: str, body: JSON, asked: tuple[object, ...]
) -> None:
    view = FakeView()
    async with serving(endpoint(token_file, view)) as port:
        assert (await post(port, target, token=WRITER, body=body)).json == view.spec_answer
    [(key, value, by, expected)] = view.spec_asked
    assert (key, value, expected) == asked
    assert by == "REST from 127.0.0.1"


DEEP = "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"", "BadValue"),
        (b'{"key": "a"}', "BadValue"),
        (b'{"value": 1}', "BadKey"),
        (b'{"key": "a b", "value": 1}', "BadKey"),
        (b'{"key": ["a"], "value": 1}', "BadKey"),
        (b'{"key": "a", "value": NaN}', "BadBody"),
        (b'{"key": "a", "value": 1e999}', "BadBody"),
        (b'{"key": "a", "value": {"b": 1, "b": 2}}', "BadBody"),
        (b'{"key": "a", "value": 1, "value": 2}', "BadBody"),
        (b'{"key": "a", "value": "\\ud800"}', "BadBody"),
        (b'{"key": "a", "value": 1, "if_is": 2}', "BadBody"),
        (b'{"key": "a", "value": 1, "if-absent": 1}', "BadCondition"),
        (b'{"key": "a", "value": 1, "if-absent": true, "if-is": 1}', "BadCondition"),
        (f'{{"key": "a", "value": {DEEP}}}'.encode(), "BadValue"),
        (b'{"key": "a", "value": ' + b"[" * 90 + b"]" * 90 + b"}", "BadBody"),
        (f'{{"key": "a", "value": 1, "if-is": {DEEP}}}'.encode(), "BadValue"),
    ],
)
async def test_bad_changes_are_refused_by_name(token_file: Path, body: bytes, name: str) -> None:
    view = FakeView()
    status, told = await ask(endpoint(token_file, view), "POST", "/v1/set", token=WRITER, body=body)
    assert (status, json.loads(told)["error"]["name"]) == (400, name)
    assert not view.spec_asked


@pytest.mark.parametrize(
    ("answer", "status", "name"),
    [
        ({"refused": "NotAsExpected", "message": "no"}, 412, "NotAsExpected"),
        ({"refused": "SpecTooLarge", "message": "no"}, 409, "SpecTooLarge"),
        ({"refused": "TooManyKeys", "message": "no"}, 409, "TooManyKeys"),
        ({"refused": "SpecDamaged", "message": "no"}, 409, "SpecDamaged"),
        ({"refused": "", "done": False, "message": "perhaps"}, 202, ""),
    ],
)
async def test_what_a_master_refuses(
    token_file: Path, answer: dict[str, JSON], status: int, name: str
) -> None:
    view = FakeView()
    view.spec_answer = answer
    body = b'{"key": "a", "value": 1}'
    web = endpoint(token_file, view)
    found, told = await ask(web, "POST", "/v1/set", token=WRITER, body=body)
    assert (found, json.loads(told).get("error", {}).get("name", "")) == (status, name)


async def test_large_values_come_through_for_writers_alone(token_file: Path) -> None:
    view, limits = FakeView(), Limits()
    whole = "\u00e9" * (MAX_VALUE // 2 - 1)
    large = {"key": "a", "value": whole, "if-is": "x" * (MAX_VALUE - 2)}
    async with serving(endpoint(token_file, view)) as port:
        async with client(port) as one:
            body = json.dumps(large, ensure_ascii=False).encode()
            assert len(body) > 2 * MAX_VALUE
            assert (await one.ask("POST", "/v1/set", token=WRITER, body=body)).status == 200
            # The limit is that of each request, not of the connection.
            refused = await one.ask("POST", "/v1/runs", token=WRITER, body=body)
            assert refused.error == (413, "BodyTooLarge")
        over = await post(
            port, "/v1/set", token=WRITER, body={"key": "a", "value": "x" * MAX_VALUE}
        )
        assert over.error == (413, "ValueTooLarge")
        for token, target in ((READER, "/v1/set"), ("", "/v1/unset"), ("x" * 20, "/v1/set")):
            async with client(port) as one:
                refused = await one.ask("POST", target, token=token, body=body)
                assert refused.error == (413, "BodyTooLarge"), (token, target)
                assert str(limits.body) in refused.json["error"]["message"]
        head = f"POST /v1/set HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {WRITER}\r\n"
        head += f"Content-Length: {limits.large_body + 1}\r\n\r\n"
        assert b"413" in (await raw(port, head.encode())).partition(b"\r\n")[0]
    assert len(view.spec_asked) == 1
