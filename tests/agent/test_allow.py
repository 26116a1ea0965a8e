"""The allow-list: what it lets run, how it refuses the rest, and how it is read."""

import json
import re
from pathlib import Path

import pytest

from kontrol.agent.allow import MAX_ARGUMENT, AllowList, AllowListError, parse_allow_list
from kontrol.agent.request import CommandRequest
from kontrol.rpc.errors import Refused

RESTART = {
    "argv": ["svc", "restart", "--unit={1}.{2}", "{1}"],
    "args": ["redis|sentinel", "[0-9]+"],
}
COMMANDS = {
    "restart": RESTART,
    "uptime": {"argv": ["uptime"], "timeout": 5},
    "feed": {"argv": ["cat"], "stdin": True},
}


def made(folder: Path, value: object = COMMANDS) -> AllowList:
    path = folder / "allow.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    return AllowList(path)


def test_fills_the_arguments_in_without_a_shell(tmp_path: Path) -> None:
    allow = made(tmp_path)
    permitted = allow.permit(CommandRequest(("restart", "redis", "17")))
    assert permitted.words == ("svc", "restart", "--unit=redis.17", "redis")
    assert allow.permit(CommandRequest(cmd="restart 'redis' 17")).words == permitted.words


def test_the_arguments_are_to_be_compared_with_their_patterns(tmp_path: Path) -> None:
    permitted = made(tmp_path).permit(CommandRequest(("restart", "nginx", "17")))
    assert permitted.checks == (("redis|sentinel", "nginx"), ("[0-9]+", "17"))


def test_an_argument_is_not_filled_in_twice(tmp_path: Path) -> None:
    allow = made(tmp_path, {"echo": {"argv": ["echo", "{1}", "{2}"], "args": [".*", ".*"]}})
    assert allow.permit(CommandRequest(("echo", "{2}", "x"))).words == ("echo", "{2}", "x")


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (
            CommandRequest(("sh", "-c", "id")),
            "'sh' is not allowed here; allowed are feed, restart, uptime",
        ),
        (CommandRequest(cmd="uptime; id"), "'uptime;' is not allowed"),
        (CommandRequest(cmd="uptime 'x"), "cannot be split"),
        (CommandRequest(cmd=" "), "cmd is empty"),
        (CommandRequest(cmd="x" * (MAX_ARGUMENT + 1)), "over 4096 characters"),
        (CommandRequest(("restart", "redis")), "takes 2 arguments, got 1"),
        (
            CommandRequest(("restart", "redis", "1" * (MAX_ARGUMENT + 1))),
            "argument 2 of 'restart' has 4097 characters; expected at most 4096",
        ),
        (CommandRequest(("uptime",), env={"LD_PRELOAD": "x"}), "takes no `env`"),
        (CommandRequest(("uptime",), stdin=b"x"), "takes no `stdin`"),
    ],
)
def test_refuses_everything_else(tmp_path: Path, request_: CommandRequest, says: str) -> None:
    with pytest.raises(Refused) as caught:
        made(tmp_path).permit(request_)
    assert caught.value.name == "Forbidden"
    assert says in caught.value.message


def test_what_invoke_and_an_entry_need_may_pass(tmp_path: Path) -> None:
    allow = made(tmp_path)
    assert allow.permit(CommandRequest(cmd="uptime", env={"INPUT": "{}"}, timeout=60)).timeout == 5
    assert allow.permit(CommandRequest(("uptime",), timeout=1)).timeout == 1
    assert allow.permit(CommandRequest(("uptime",))).timeout == 5
    assert allow.permit(CommandRequest(("feed",), stdin=b"x")).stdin == b"x"


def test_is_read_again_when_it_changes(tmp_path: Path) -> None:
    allow = made(tmp_path)
    path = tmp_path / "allow.json"
    path.write_text('{"id": {"argv": ["id"]}}', encoding="utf-8")
    assert allow.permit(CommandRequest(("id",))).words == ("id",)
    with pytest.raises(Refused, match="'uptime' is not allowed"):
        allow.permit(CommandRequest(("uptime",)))


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", None])
def test_lets_nothing_run_while_it_is_bad(tmp_path: Path, content: bytes | None) -> None:
    allow = made(tmp_path)
    path = tmp_path / "allow.json"
    good = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(
            Refused, match=re.escape(f"no command may run: KONTROL_INVOKE_ALLOW: {path}")
        ):
            allow.permit(CommandRequest(("uptime",)))
    path.write_bytes(good)
    assert allow.permit(CommandRequest(("uptime",))).words == ("uptime",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{\n x}", "line 2 column 2"),
        ("[" * 100_000, "nested deeper than"),
        ("[]", "not a JSON object"),
        ('{"a": {"argv": ["x"]}, "a": {"argv": ["y"]}}', "the member 'a' is there twice"),
        ('{"a": {"argv": ["x"], "argv": ["y"]}}', "the member 'argv' is there twice"),
        ('{"a b": {"argv": ["x"]}}', "'a b' is not a name"),
        ('{"": {"argv": ["x"]}}', "'' is not a name"),
        ('{"a": ["x"]}', "expected an object with argv and args"),
        ('{"a": {"argv": ["x"], "arg": []}}', "a: unknown member 'arg'; known are argv, args"),
        ('{"a": {}}', "a: argv is missing"),
        ('{"a": {"argv": "x"}}', "a: argv is 'x'; expected a list"),
        ('{"a": {"argv": []}}', "must begin with a program"),
        ('{"a": {"argv": ["{1}"], "args": ["x"]}}', "must begin with a program"),
        ('{"a": {"argv": ["x", 1]}}', "expected a list of strings"),
        ('{"a": {"argv": ["x", "{2}"], "args": ["y"]}}', "argument 1 is nowhere in argv: add {1}"),
        ('{"a": {"argv": ["x", "{1}", "{2}"], "args": ["y"]}}', "{2} has no pattern"),
        (
            '{"a": {"argv": ["x", "{1}"], "args": ["("]}}',
            "pattern 1, '(', is not a regular expression",
        ),
        ('{"a": {"argv": ["x"], "timeout": 0}}', "timeout is 0; expected seconds"),
        ('{"a": {"argv": ["x"], "timeout": NaN}}', "NaN is not a JSON number"),
        ('{"a": {"argv": ["x"], "stdin": 1}}', "stdin is 1; expected true or false"),
    ],
)
def test_a_bad_file_is_told_with_its_place(content: str, says: str) -> None:
    with pytest.raises(AllowListError) as caught:
        parse_allow_list(content.encode())
    assert says in str(caught.value)
