"""`kontrol set`, `get` and `unset` against a master that answers as it is told."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.cli.conftest import Run
from tests.cli.master import Master, Reply, entry

from kontrol.cli.operate.document import UntrustedJson
from kontrol.cli.operate.runs import explain, ledger, now
from kontrol.cli.table import Console
from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.desired import MAX_VALUE

Read = Callable[[], tuple[str, str]]

DONE = {"key": "a", "done": True, "changed": True, "message": "a is set", "refused": ""}


@pytest.fixture
def read(capsys: pytest.CaptureFixture[str]) -> Read:
    return capsys.readouterr


def refused(name: str, message: str = "no") -> dict[str, Any]:
    return {"error": {"name": name, "message": message}}


@pytest.mark.parametrize(
    ("words", "path", "body"),
    [
        (["set", "replicas=3"], "/v1/set", {"key": "replicas", "value": 3}),
        (["set", "primary=pod-1"], "/v1/set", {"key": "primary", "value": "pod-1"}),
        (["set", "a=b=c"], "/v1/set", {"key": "a", "value": "b=c"}),
        (["set", "a="], "/v1/set", {"key": "a", "value": ""}),
        (["set", "v=1.10", "--string"], "/v1/set", {"key": "v", "value": "1.10"}),
        (["set", "v=[1", "--string"], "/v1/set", {"key": "v", "value": "[1"}),
        (["set", "a=1", "--if-is", "2"], "/v1/set", {"key": "a", "value": 1, "if-is": 2}),
        (["set", "a=1", "--if-is", "null"], "/v1/set", {"key": "a", "value": 1, "if-is": None}),
        (["set", "a=1", "--if-is", ""], "/v1/set", {"key": "a", "value": 1, "if-is": ""}),
        (["set", "a=\u20ac"], "/v1/set", {"key": "a", "value": "\u20ac"}),
        (["set", "a=1", "--if-absent"], "/v1/set", {"key": "a", "value": 1, "if-absent": True}),
        (["unset", "a"], "/v1/unset", {"key": "a"}),
        (["unset", "a", "--if-is", "pod-1"], "/v1/unset", {"key": "a", "if-is": "pod-1"}),
    ],
)
def test_what_a_master_is_asked(
    run: Run, master: Master, read: Read, *, words: list[str], path: str, body: object
) -> None:
    master.replies[f"POST {path}"] = Reply(DONE)
    assert run(*words) == 0
    assert read() == ("a is set\n", "")
    [asked] = master.asked
    assert (asked.method, asked.path, json.loads(asked.body)) == ("POST", path, body)
    assert run(*words, "--json") == 0
    assert json.loads(read()[0]) == DONE


@pytest.mark.parametrize(
    ("status", "reply", "exits", "says"),
    [
        (202, {**DONE, "done": False, "message": "it may have been made"}, 4, "it may have"),
        (412, refused("NotAsExpected", "'a' is not set"), 7, "'a' is not set"),
        (409, refused("SpecTooLarge", "at most 524288"), 5, "refused: at most 524288"),
        (413, refused("BodyTooLarge"), 5, "no"),
        (400, refused("BadKey"), 2, "no"),
        (503, refused("Unavailable", "etcd is full: compact it"), 4, "etcd is full: compact it"),
        (404, refused("NoSuchPath"), 4, "of another version, and does not know this: upgrade it"),
    ],
)
def test_how_it_ends(
    run: Run, master: Master, read: Read, *, status: int, reply: object, exits: int, says: str
) -> None:
    for path in ("/v1/set", "/v1/unset"):
        master.replies[f"POST {path}"] = Reply(reply, status=status)
    for words in (["set", "a=1", "--if-is", "2"], ["unset", "a"]):
        assert run(*words) == exits
        out, err = read()
        assert out == ""
        assert says in err


@pytest.mark.parametrize(
    "words",
    [
        ["set", "a"], ["set", "=1"], ["set", "a b=1"], ["set", "a={1"], ["set", "a=NaN"],
        ["set", "a=1e999"], ["set", "a=" + "[" * 40 + "]" * 40], ["set", 'a={"b":1,"b":2}'],
        ["set", "a=" + "x" * MAX_VALUE], ["set", "a=1", "--if-is", "[1"], ["set", "a=\udc80"],
        ["unset", "a/b"], ["get", "a/b"], ["get", "../status"], ["set", "\u00e9=1"],
        ["set", "x" * 65 + "=1"], ["set", "a=\udc80", "--string"],
    ],
)  # fmt: skip
def test_what_cannot_be_set_is_said_before_a_master_is_asked(
    run: Run, master: Master, read: Read, words: list[str]
) -> None:
    assert run(*words) == 2
    assert master.asked == []
    assert 0 < len(read()[1]) < 400


@pytest.mark.parametrize(
    "words",
    [["set"], ["unset"], ["get", "a", "b"], ["set", "a=1", "--if-is", "1", "--if-absent"]],
)
def test_bad_usage(run: Run, master: Master, words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*words)
    assert caught.value.code == 2
    assert master.asked == []


def test_get_prints_json(run: Run, master: Master, read: Read) -> None:
    whole = {"spec": {"b": "x\u001b", "a": 1}, "keys": {}, "revision": 7}
    one = {"key": "a", "value": {"x": [1]}, "by": "REST", "at": "", "revision": 7}
    master.replies["GET /v1/spec"] = Reply(whole)
    master.replies["GET /v1/spec/a"] = Reply(one)
    assert run("get") == 0
    assert json.loads(read()[0]) == whole["spec"]
    assert run("get", "--json") == 0
    assert json.loads(read()[0]) == whole
    assert run("get", "a") == 0
    assert json.loads(read()[0]) == {"x": [1]}
    assert run("get", "a", "--json") == 0
    assert json.loads(read()[0]) == one
    master.replies["GET /v1/spec/b"] = Reply(refused("NoSuchKey", "'b' is not set"), status=404)
    assert run("get", "b") == 3
    assert read() == ("", "kontrol: 'b' is not set\n")


def test_runs_and_explain_say_which_client_set_what() -> None:
    at, by = "2026-01-05T03:08:10Z", "REST from 10.0.0.7"
    changed = {
        "count": 7,
        "first": ["replicas", "old", "c", "d", "e"],
        "by": [
            {"key": "replicas", "did": "set", "by": by, "at": at},
            {"key": "old", "did": "unset", "by": "", "at": ""},
            {"key": "\x1b[31m", "did": "set", "by": by, "at": "junk"},
            7,
        ],
    }
    none: dict[str, object] = {"count": 0, "first": []}
    kinds = dict.fromkeys(("joined", "left", "lost", "changed"), none)
    document = UntrustedJson.of(entry(42, reason="spec", changes={**kinds, "spec": changed}))
    text = "\n".join(explain(document, Console()))
    assert "why       the desired state changed\n" in text
    assert f"set       replicas, by {by}, 2026-01-05 03:08:10 UTC\n" in text
    assert "unset     old\n" in text
    assert f"set       \\x1b[31m, by {by}\n" in text
    assert "spec      4 more keys changed\n" in text
    assert "changes " not in text
    table = "\n".join(ledger([document], Console(200)))
    assert "spec" in table
    assert "7 spec (replicas, old, c, d, e, ...)" in table
    plan: JSON = {"what": "run", "reason": "spec"}
    assert now(UntrustedJson.of({"plan": plan})) == "a run is starting: the desired state changed"
