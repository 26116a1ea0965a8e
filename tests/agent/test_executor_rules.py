"""Which callers the executor runs commands for, how many, how they end, and what is logged."""

import asyncio
import json
import logging
import shlex
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from tests.agent.commands import (
    ENVIRON,
    SECRETS,
    Running,
    call,
    called,
    exec_,
    executor,
    holding,
    invoke,
    refusal,
    serving,
)
from tests.process.helpers import WAIT, Life
from tests.rpc.keyed import cluster, guarded
from tests.rpc.support import peer, running, say, until

from kontrol.agent.executor import Bounds, Executor, refusing
from kontrol.process.command import Command, Outcome
from kontrol.process.pool import Guards
from kontrol.rpc.client import Client
from kontrol.rpc.errors import Refused, RemoteError
from kontrol.rpc.security.keys import Keyring, Kind
from kontrol.rpc.server import Server

# Who may.


@pytest.mark.parametrize("caller", ["agent", None])
async def test_runs_nothing_for_others_than_masters_and_operators(
    guards: Guards, tmp_path: Path, caller: Kind | None
) -> None:
    executor = Executor(guards, environ=ENVIRON, secrets=SECRETS)
    methods: Mapping[str, Callable[..., Any]] = executor.methods()
    raw = json.dumps({"cmd": f"touch {tmp_path}/ran"})
    with pytest.raises(Refused, match="Forbidden: commands require a key of kind master"):
        await methods["invoke"](call(caller), raw)
    with pytest.raises(Refused, match="Forbidden"):
        await anext(methods["exec"](call(caller), raw))
    with pytest.raises(Refused, match="Forbidden"):
        await methods["invoke"](call(caller), "not even JSON")
    assert not (tmp_path / "ran").exists()
    assert not guards.pids


@pytest.mark.parametrize("caller", ["master", "operator"])
async def test_runs_for_masters_and_operators(guards: Guards, caller: Kind) -> None:
    executor = Executor(guards, environ=ENVIRON, secrets=SECRETS)
    methods: Mapping[str, Callable[..., Any]] = executor.methods()
    assert await methods["invoke"](call(caller), '{"cmd": "echo hi"}') == "hi"


async def test_the_fence_is_for_masters(guards: Guards) -> None:
    """An operator who is held to an allow-list could shut every leader out by it."""
    executor = Executor(guards, environ=ENVIRON, secrets=SECRETS)
    methods: Mapping[str, Callable[..., Any]] = executor.methods()
    last = json.dumps({"cmd": "echo hi", "tier": "t", "term": 2**63 - 1, "run": 1})
    with pytest.raises(Refused, match="Forbidden: an operator's key cannot act for a callback"):
        await methods["invoke"](call("operator"), last)
    with pytest.raises(Refused, match="leave out tier, term and run"):
        await anext(methods["exec"](call("operator"), last))
    first = json.dumps({"cmd": "echo hi", "tier": "t", "term": 1, "run": 1})
    assert await methods["invoke"](call("master"), first) == "hi"


async def test_without_keys_it_refuses_with_the_fix() -> None:
    async with running(Server(refusing())) as port, Client("127.0.0.1", port) as client:
        for method in ("invoke", "exec"):
            with pytest.raises(
                RemoteError, match=r"Forbidden: .*set KONTROL_KEYS.*INVOKE=insecure"
            ):
                await client.call(method, '{"cmd": "true"}', timeout=WAIT)


async def test_an_allow_list_lets_nothing_else_run(guards: Guards, tmp_path: Path) -> None:
    allow = tmp_path / "allow.json"
    allow.write_text(
        '{"say": {"argv": ["echo", "<{1}>"], "args": ["[a-z ;$]+"]}}', encoding="utf-8"
    )
    async with called(guards, allow) as client:
        assert (await exec_(client, argv=["say", "a;b $c"]))[0] == {"stdout": "<a;b $c>\n"}
        assert await invoke(client, cmd="say 'a b'") == "<a b>"
        assert "Forbidden: 'echo' is not allowed here; allowed are say" in await refusal(
            client, argv=["echo", "hi"]
        )
        assert "Forbidden: argument 1 is 'A'; expected what" in await refusal(
            client, argv=["say", "A"]
        )
        for argument in ("a\n", "xA", "Ax", ""):
            assert "Forbidden: argument 1 is " in await refusal(client, argv=["say", argument])
            with pytest.raises(RemoteError, match="Forbidden: argument 1 is "):
                await invoke(client, cmd=shlex.join(["say", argument]))


async def test_a_pattern_that_backtracks_for_ever_is_given_up(
    guards: Guards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    allow = tmp_path / "allow.json"
    allow.write_text('{"say": {"argv": ["echo", "{1}"], "args": ["([a-z]+-?)+"]}}', "utf-8")
    loop = asyncio.get_running_loop()
    longest = 0.0

    async def look_on() -> None:
        """See how long the event loop is not free at most."""
        nonlocal longest
        while True:
            before = loop.time()
            await asyncio.sleep(0.01)
            longest = max(longest, loop.time() - before)

    async with called(guards, allow) as client:
        assert await invoke(client, cmd="say a-b") == "a-b"
        looking = asyncio.create_task(look_on())
        said = await refusal(client, argv=["say", "a" * 60 + "!"])
        looking.cancel()
    assert "Forbidden: argument 1 was not compared with '([a-z]+-?)+' within 0.1 s of" in said
    assert longest < 5, "the loop was held up"  # it would be for longer than there is a universe
    assert ["refused: Forbidden: argument 1 was" in line for line in audited(caplog)][-1]


# How many.


async def test_bounds_what_runs_for_one_address(guards: Guards, pipe: Life) -> None:
    """Over however many connections."""
    bounds = Bounds(commands=3, commands_per_address=2)
    async with serving(guards, bounds=bounds) as port, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client("127.0.0.1", port)) for _ in range(3)]
        old = [Running(client, holding(pipe)) for client in clients[:2]]
        assert [await pipe.line(), await pipe.line()] == ["up", "up"]
        said = await refusal(clients[2], cmd="true")
        assert "Busy: 2 commands run here for 127.0.0.1, the most for one address" in said
        for one in old:
            await one.end()
        await pipe.gone()


async def test_bounds_what_runs_for_all_together(guards: Guards, pipe: Life) -> None:
    async with called(guards, bounds=Bounds(commands=1)) as client:
        old = Running(client, holding(pipe))
        await pipe.line()
        said = await refusal(client, cmd="true")
        assert "Busy: 1 commands run here, the most at a time" in said
        await old.end()
        await pipe.gone()
        async with asyncio.timeout(WAIT):
            # No event tells a caller that there is room.
            while "Busy" in await outcome(client):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def outcome(client: Client) -> str:
    try:
        return str(await invoke(client, cmd="echo room"))
    except RemoteError as error:
        return error.name


# How it ends.


async def test_a_caller_that_gives_up_ends_its_command(client: Client, pipe: Life) -> None:
    streaming = Running(client, holding(pipe))
    waiting = asyncio.create_task(invoke(client, cmd=holding(pipe)))
    assert [await pipe.line(), await pipe.line()] == ["up", "up"]
    await streaming.end()
    waiting.cancel()
    await pipe.gone()


async def test_a_caller_that_vanishes_ends_its_command(guards: Guards, pipe: Life) -> None:
    async with serving(guards) as port, peer("reference_client.py", port, 5) as original:
        say(original, f"c.invoke({json.dumps({'cmd': holding(pipe)})!r})")
        await pipe.line()
        original.kill()
        await pipe.gone()


async def test_the_end_of_the_agent_ends_every_command(guards: Guards, pipe: Life) -> None:
    async with AsyncExitStack() as stack:
        async with serving(guards) as port:
            client = await stack.enter_async_context(Client("127.0.0.1", port))
            old = [Running(client, holding(pipe)) for _ in range(3)]
            for _ in old:
                await pipe.line()
        assert pipe.is_gone()
        for one in old:
            await one.end()


# The fence.


async def test_a_higher_term_ends_what_runs_of_a_lower_one_first(
    client: Client, pipe: Life, tmp_path: Path
) -> None:
    """A dead leader's command is gone before the next leader's begins."""
    lock = tmp_path / "lock"
    cmd = f"exec 8>{lock}; flock -s 8; {holding(pipe)}"
    old = [Running(client, cmd, tier="ns/app", term=5, run=run) for run in (1, 2)]
    other = Running(client, holding(pipe), tier="ns/other", term=1, run=1)
    for _ in (*old, other):
        await pipe.line()
    items = await exec_(
        client, argv=["flock", "-n", str(lock), "true"], tier="ns/app", term=6, run=3
    )
    assert items[-1]["exit"] == 0
    for one in old:
        with pytest.raises(RemoteError, match="Fenced: killed: term 6 of tier 'ns/app' has called"):
            await one.task
    assert not other.task.done()
    said = await refusal(client, cmd="true", tier="ns/app", term=5, run=4)
    assert "Fenced: term 5 of tier 'ns/app' is over: term 6 has called here" in said
    assert await invoke(client, cmd="echo yes", tier="ns/app", term=6, run=4) == "yes"
    with pytest.raises(RemoteError, match="Fenced"):
        await invoke(client, cmd="echo yes", tier="ns/app", term=5, run=4)
    assert await invoke(client, cmd="echo yes") == "yes"
    await other.end()
    await pipe.gone()


async def test_old_commands_do_not_keep_a_new_leader_out(guards: Guards, pipe: Life) -> None:
    """However many a dead leader left, the next one's call has room."""
    async with called(guards, bounds=Bounds(commands=2)) as client:
        old = [Running(client, holding(pipe), tier="t", term=5, run=1) for _ in range(2)]
        for _ in old:
            await pipe.line()
        assert await invoke(client, cmd="echo new", tier="t", term=6, run=2) == "new"
        assert pipe.is_gone()
        for one in old:
            await one.end()


class Slow:
    """Guards whose commands take their time to die, and are dead only once `die` is set."""

    def __init__(self) -> None:
        self.started: list[tuple[str, ...]] = []
        self.dying = asyncio.Event()
        self.die = asyncio.Event()

    @asynccontextmanager
    async def guard(self) -> AsyncIterator["Slow"]:
        yield self

    async def run(self, command: Command, **_: object) -> Outcome:
        self.started.append(command.argv)
        try:
            if command.argv == ("old",):
                await asyncio.Event().wait()
        finally:
            self.dying.set()
            await self.die.wait()
        return Outcome("exited", 0, None, b"", b"", 0.0, "exit status 0")


async def test_a_caller_that_goes_while_it_is_fenced_hides_nothing() -> None:
    """A dead leader's call ends at the moment of the next one's: that still waits for the end."""
    guards = Slow()
    executor = Executor(cast("Guards", guards), environ={}, secrets=(), insecure=True)
    run: Callable[..., Any] = executor.methods()["exec"]

    async def started(name: str, term: int) -> "asyncio.Task[object]":
        raw = json.dumps({"argv": [name], "tier": "t", "term": term, "run": 1})
        task = asyncio.create_task(anext(run(call(None), raw)))
        for _ in range(20):
            await asyncio.sleep(0)
        return task

    old = await started("old", 5)
    old.cancel()
    async with asyncio.timeout(WAIT):
        await guards.dying.wait()
    new = await started("new", 6)
    assert guards.started == [("old",)]
    guards.die.set()
    async with asyncio.timeout(WAIT):
        assert await new == {"exit": 0, "signal": None, "seconds": 0.0, "why": None}
        await asyncio.wait({old})
    assert guards.started == [("old",), ("new",)]


# What is logged.


def audited(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("kontrol.audit")]


async def test_every_call_is_one_line_of_the_audit(
    client: Client, guards: Guards, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await exec_(client, argv=["sh", "-c", "exit 3"], tier="ns/app", term=7, run=9)
    await invoke(client, cmd="echo 'a\nb\x1b[2J'")
    await client.call("invoke", "{", timeout=WAIT)
    await refusal(client, argv=["no-such"])
    await refusal(client, cmd="true", tier="ns/app", term=6, run=9)
    await invoke(client, cmd=f"true {'x' * 5000}")
    ran, invoked, bad, absent, fenced, long = audited(caplog)
    caller = "a client without a key at 127.0.0.1"
    head = f"exec by {caller} (run 9, term 7, tier ns/app): ['sh', '-c', 'exit 3']: "
    assert ran.startswith(f"{head}exit status 3 in 0.")
    assert invoked.startswith(
        r"""invoke by a client without a key at 127.0.0.1: "echo 'a\nb\x1b[2J'": exit st"""
    )
    assert bad.startswith(
        "invoke by a client without a key at 127.0.0.1: refused: the argument is not JSON"
    )
    assert "['no-such']: could not be found" in absent
    assert "refused: Fenced: term 6" in fenced
    assert len(long) < 1200
    caplog.clear()
    methods = Executor(guards, environ=ENVIRON, secrets=SECRETS).methods()
    await methods["invoke"](call("operator", "invoke"), '{"cmd": "true"}')  # type: ignore[misc]  # it is awaitable
    [line] = audited(caplog)
    assert line.startswith("invoke by operator 1a2b3c4d at 10.0.0.9: 'true': exit status 0 in ")


async def test_the_audit_tells_who_ended_a_command(
    client: Client, pipe: Life, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gone = Running(client, holding(pipe))
    fenced = Running(client, holding(pipe), tier="t", term=1, run=1)
    assert [await pipe.line(), await pipe.line()] == ["up", "up"]
    await invoke(client, cmd="true", tier="t", term=2, run=2)
    await asyncio.wait({fenced.task})
    await gone.end()
    await pipe.gone()
    assert isinstance(fenced.task.exception(), RemoteError)
    async with asyncio.timeout(WAIT):  # its end is known here a little after its process is gone
        while "killed: the caller gave up in " not in "".join(audited(caplog)):
            await invoke(client, cmd="true")
    assert "killed, because term 2 has called in " in "".join(audited(caplog))


async def test_a_removed_key_ends_its_commands_within_a_second_and_the_audit_says_why(
    guards: Guards, pipe: Life, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    keys = cluster(tmp_path / "keys")
    async with (
        executor(guards) as made,
        guarded(made.methods(), keys, own="agent", heartbeat=300) as port,
        Client(
            "127.0.0.1",
            port,
            heartbeat=300,
            keys=Keyring.load(keys),
            as_="operator",
            to=("agent",),
        ) as thief,
    ):
        running = Running(thief, holding(pipe))
        assert await pipe.line() == "up"
        (keys / "operators").write_text("", encoding="utf-8")
        async with asyncio.timeout(1.0):
            await pipe.gone()
        await asyncio.wait({running.task})
        assert "Forbidden" in str(running.task.exception())
        await until(lambda: bool(audited(caplog)))
    [line] = audited(caplog)
    assert ": killed: the key of this connection is not accepted any more in " in line
