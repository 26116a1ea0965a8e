"""What the executor runs: the original's `invoke` to the letter, and `exec` in full."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.agent.commands import called, exec_, holding, invoke, refusal, serving
from tests.process.helpers import HOLD, WAIT, Life
from tests.rpc.support import line as said
from tests.rpc.support import peer, say

from kontrol.agent.executor import Bounds
from kontrol.process.pool import Guards
from kontrol.rpc.client import Client
from kontrol.rpc.errors import RemoteError
from kontrol.rpc.limits import Limits

# `invoke`, to the letter.


@pytest.mark.parametrize(
    ("cmd", "answer"),
    [
        ("echo hi", "hi"),
        ("printf 'a\\nb\\n'", "a\nb"),
        ("printf 'a\\nb'", "a\nb"),
        ("printf 'a\\n\\n'", "a\n"),
        ("true", ""),
        ("echo err >&2; echo out; exit 3", "out"),
        ("kill -9 $$", ""),
        ("no-such-program", ""),
        ("printf é", "é"),
        ("printf '\\377\\n'", b"\xff"),
        ('echo "$PLAIN $KONTROL_ETCD_PASSWORD_FILE"', "1 "),
        ("echo $KONTROL_ETCD_PASSWORD_FILE | wc -c", "1"),
        ("cat", ""),
    ],
)
async def test_invoke_answers_the_lines(client: Client, cmd: str, answer: object) -> None:
    assert await invoke(client, cmd=cmd) == answer


async def test_invoke_gives_the_command_its_whole_argument(client: Client) -> None:
    raw = json.dumps({"cmd": 'printf %s "$INPUT"', "é": [1, {"a": "b\n"}]})
    assert await client.call("invoke", raw, timeout=WAIT) == raw


@pytest.mark.parametrize("raw", ["{", "[]", "{}", '{"cmd": 1}', 3, None, b"\xff", {"cmd": "ls"}])
async def test_invoke_answers_null_without_a_command(client: Client, raw: object) -> None:
    assert await client.call("invoke", raw, timeout=WAIT) is None


async def test_invoke_answers_null_when_time_is_up(guards: Guards, pipe: Life) -> None:
    async with called(guards, bounds=Bounds(seconds=0.2)) as client:
        assert await invoke(client, cmd=holding(pipe)) is None
        assert pipe.is_gone()


async def test_invoke_says_what_to_do_about_too_much_output(guards: Guards) -> None:
    async with called(guards, bounds=Bounds(answer=1000)) as client:
        with pytest.raises(RemoteError, match=r"TooLarge: .*1000.*use `exec`, which streams"):
            await invoke(client, cmd="yes")
        assert await invoke(client, cmd="head -c 1000 /dev/zero | tr '\\0' x") == "x" * 1000


async def test_the_originals_call_by_the_reference_library(guards: Guards) -> None:
    async with serving(guards) as port, peer("reference_client.py", port, 5) as original:
        for call, answer in (
            ("""c.invoke('{"cmd": "echo hello; echo world; exit 1"}')""", '"hello\\nworld"'),
            ("""c.invoke('{"cmd": "echo $INPUT"}')""", json.dumps('{"cmd": "echo $INPUT"}')),
            ("""c.invoke('{"cmd": ')""", "null"),
            ("""c.invoke('{"no": "cmd"}')""", "null"),
        ):
            say(original, call)
            assert await said(original) == answer
        say(original, """list(c.exec('{"argv": ["echo", "hi"]}'))[:-1]""")
        assert json.loads(await said(original)) == [{"stdout": "hi\n"}]


# `exec`, in full.


async def test_exec_streams_and_tells_how_it_ended(client: Client) -> None:
    items = await exec_(client, cmd="echo out; sleep 0.05; echo err >&2; exit 3")
    end = items.pop()
    assert items == [{"stdout": "out\n"}, {"stderr": "err\n"}]
    assert 0 < end.pop("seconds") < WAIT
    assert end == {"exit": 3, "signal": None, "why": None}
    [end] = await exec_(client, cmd="kill -SEGV $$")
    assert (end["exit"], end["signal"], end["why"]) == (None, 11, None)


async def test_exec_takes_words_environment_and_input(client: Client) -> None:
    items = await exec_(
        client,
        argv=["/bin/sh", "-c", 'cat; echo "$0 $A $PLAIN"', "x y"],
        env={"A": "b"},
        stdin="é|",
    )
    assert "".join(item["stdout"] for item in items[:-1]) == "é|x y b 1\n"


async def test_exec_ends_what_takes_too_long(client: Client, pipe: Life) -> None:
    cmd = f"LIFE={pipe.path}; {HOLD} setsid sleep 1000 & echo up; wait"
    items = await exec_(client, cmd=cmd, timeout=0.3)
    assert items[0] == {"stdout": "up\n"}
    assert (items[-1]["signal"], items[-1]["why"]) == (15, "timed out after 0.3 s")
    assert pipe.is_gone()


async def test_what_is_no_text_comes_as_bytes_and_nothing_is_lost(client: Client) -> None:
    cmd = (
        r"printf 'a\303'; sleep 0.1; printf '\251b'; sleep 0.1; printf '\377c'; printf 'd\303' >&2"
    )
    items = await exec_(client, cmd=cmd)
    out = [item["stdout"] for item in items if "stdout" in item]
    assert out == ["a", "éb", b"\xffc"]
    assert [item["stderr"] for item in items if "stderr" in item] == ["d", b"\xc3"]
    assert "exit" in items[-1]


@pytest.mark.parametrize(
    ("members", "says"),
    [
        (
            {"argv": ["no-such-program"]},
            "NotStarted: could not be found: 'no-such-program' in PATH",
        ),
        ({"argv": ["/etc/passwd"]}, "NotStarted: '/etc/passwd': permission denied: make it"),
        (
            {"argv": ["/usr/bin/echo", "x" * 200_000]},
            "NotStarted: '/usr/bin/echo': its arguments and environment",
        ),
        ({}, "InvalidRequest: expected one of `argv`"),
        ({"cmd": "true", "timeout": "1"}, "InvalidRequest: timeout is '1'; expected seconds"),
    ],
)
async def test_exec_says_why_it_did_not_run(
    client: Client, members: Mapping[str, object], says: str
) -> None:
    assert says in await refusal(client, **members)


async def test_what_a_caller_does_not_read_stops_its_command(
    guards: Guards, tmp_path: Path
) -> None:
    """Nothing is kept for a caller that does not read: the command waits."""
    limits = Limits(window=2)
    async with serving(guards) as port, Client("127.0.0.1", port, limits=limits) as client:
        mark = tmp_path / "written"
        cmd = f"head -c 3000000 /dev/zero; echo >{mark}"
        stream = client.stream("exec", json.dumps({"cmd": cmd}))
        first = await anext(stream)
        assert isinstance(first, dict)
        total = len(first["stdout"])
        for _ in range(100):
            assert await invoke(client, cmd="true") == ""
        assert not mark.exists()
        async for item in stream:
            assert isinstance(item, dict)
            total += len(item.get("stdout", ""))
        assert (total, mark.exists()) == (3_000_000, True)
