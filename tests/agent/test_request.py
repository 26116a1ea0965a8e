"""What callers ask for: taken as it is meant, or refused with what was expected."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.agent.request import BadRequest, CommandRequest, FencingToken, read_exec, read_invoke

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
MEMBERS = st.sampled_from(
    ["argv", "cmd", "env", "stdin", "stdin64", "timeout", "tier", "term", "run"]
)


def test_exec_takes_words_or_a_line() -> None:
    assert read_exec('{"argv": ["ls", "-l"]}').words == ("ls", "-l")
    assert read_exec('{"cmd": "ls | wc"}').words == ("/bin/sh", "-c", "ls | wc")
    assert read_exec(b'{"cmd": "ls"}').cmd == "ls"
    full = {
        "argv": ["a"],
        "env": {"A": "1"},
        "stdin": "é",
        "timeout": 1,
        "tier": "ns/app",
        "term": 7,
        "run": 9,
    }
    token = FencingToken("ns/app", 7, 9)
    assert read_exec(json.dumps(full)) == CommandRequest(
        ("a",), None, {"A": "1"}, "é".encode(), 1.0, token
    )


def test_input_that_is_no_text_is_base64() -> None:
    assert read_exec('{"cmd": "a", "stdin64": "AP8="}').stdin == b"\0\xff"
    assert read_exec('{"cmd": "a", "stdin": "\\u0000\u00ff"}').stdin == b"\0\xc3\xbf"
    assert read_exec('{"cmd": "a"}').stdin == b""


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (3, "is int; expected the text"),
        (b"\xff", "not JSON: not UTF-8"),
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "expected one of `argv`"),
        ('{"argv": ["a"], "cmd": "a"}', "expected one of `argv`"),
        ('{"argv": []}', "expected a list of strings"),
        ('{"argv": [""]}', "expected a list of strings"),
        ('{"argv": ["a", 1]}', "expected a list of strings"),
        ('{"cmd": " "}', "expected a line"),
        ('{"cmd": ["a"]}', "expected a line"),
        ('{"cmd": "a", "evn": {}}', "unknown member 'evn'; known are argv"),
        ('{"cmd": "a", "env": ["A"]}', "expected an object of strings"),
        ('{"cmd": "a", "env": {"A": 1}}', "env has 'A'"),
        ('{"cmd": "a", "env": {"A=B": "1"}}', "env has 'A=B'"),
        ('{"cmd": "a", "env": {"": "1"}}', "env has ''"),
        ('{"cmd": "a", "env": {"A": "\\u0000"}}', "env has 'A'"),
        ('{"cmd": "a", "stdin": 1}', "stdin is 1"),
        ('{"cmd": "a", "stdin64": 1}', "stdin64 is 1; expected a string of base64"),
        ('{"cmd": "a", "stdin64": "a"}', "stdin64 is 'a'; expected a string of base64"),
        ('{"cmd": "a", "stdin64": "YQ==\\n"}', "expected a string of base64"),
        ('{"cmd": "a", "stdin64": "é"}', "expected a string of base64"),
        ('{"cmd": "a", "stdin64": "", "stdin": ""}', "there are stdin and stdin64"),
        ('{"cmd": "a", "timeout": 0}', "timeout is 0"),
        ('{"cmd": "a", "timeout": true}', "timeout is True"),
        ('{"cmd": "a", "timeout": 90000}', "up to 86400"),
        ('{"cmd": "a", "term": 1}', "tier is missing"),
        ('{"cmd": "a", "tier": "x", "term": 1}', "run is missing"),
        ('{"cmd": "a", "tier": "x", "term": -1, "run": 1}', "term is -1"),
        ('{"cmd": "a", "tier": "x", "term": true, "run": 1}', "term is True"),
        ('{"cmd": "a", "tier": "x\\n", "term": 1, "run": 1}', "tier is 'x\\n'"),
    ],
)
def test_exec_says_what_it_expected(raw: object, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_exec(raw)
    assert says in str(caught.value)


@given(st.dictionaries(MEMBERS | st.text(), JSON) | JSON)
def test_exec_takes_it_or_refuses_it(value: object) -> None:
    try:
        request = read_exec(json.dumps(value))
    except BadRequest:
        return
    assert isinstance(value, dict)
    assert request.words
    assert all(isinstance(word, str) for word in request.words)


def test_invoke_gives_the_command_the_whole_text() -> None:
    raw = '{"cmd": "echo", "tier": "gold", "whatever": [1]}'
    assert read_invoke(raw, 60) == CommandRequest(cmd="echo", env={"INPUT": raw}, timeout=60)
    assert read_invoke(raw.encode(), 60).env == {"INPUT": raw}


def test_invoke_takes_a_fencing_token_that_is_complete() -> None:
    raw = '{"cmd": "echo", "tier": "ns/app", "term": 3, "run": 4}'
    assert read_invoke(raw, 60).fencing_token == FencingToken("ns/app", 3, 4)


@pytest.mark.parametrize("raw", ["", "{", "[]", "3", "{}", '{"cmd": 3}', b"\xff", None, 3, [1]])
def test_invoke_refuses_what_has_no_command(raw: object) -> None:
    with pytest.raises(BadRequest):
        read_invoke(raw, 60)
