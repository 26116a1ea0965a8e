"""A port with keys: who gets in, who does not, and what either may do."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
import pytest
from tests.rpc.keyed import caller, cluster, guarded, part
from tests.rpc.ours import Ours
from tests.rpc.support import (
    BEAT,
    DEADLINE,
    GREETING,
    READY,
    framed,
    peer,
    running,
    say,
    serving,
    until,
)

from kontrol.rpc.client import Client
from kontrol.rpc.errors import LostRemote, RemoteError
from kontrol.rpc.security.gate import _UNFINISHED
from kontrol.rpc.security.keyfolder import NEEDS
from kontrol.rpc.security.keys import KINDS, Keyring, KeysError, Kind
from kontrol.rpc.server import Call, Method, Server, restricted

OTHER_KEY = "it expects another public key here: it is of another cluster, or does not know ours"
LISTS = "masters, agents, operators"


class Shell:
    """A method that must not run for all callers."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def invoke(self, call: Call, raw: object) -> object:
        """Run a command."""
        self.calls.append(call)
        return raw

    async def exec(self, call: Call, raw: object) -> AsyncIterator[object]:
        """Run a command and stream."""
        self.calls.append(call)
        yield raw
        await asyncio.Event().wait()

    def methods(self, *, insecure: bool = False) -> Mapping[str, Method]:
        kinds: tuple[Kind, ...] = ("master", "operator")
        return {
            "invoke": restricted(self.invoke, *kinds, insecure=insecure),
            "exec": restricted(self.exec, *kinds, insecure=insecure, fix="say please"),
            "who": self.who,
        }

    async def who(self, call: Call) -> object:
        return [call.caller, call.key]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return cluster(tmp_path / "keys")


@pytest.fixture
def others(tmp_path: Path) -> Path:
    return cluster(tmp_path / "others")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_carries_the_kind_and_the_key_of_its_caller(keys: Path, kind: Kind) -> None:
    async with guarded(Shell().methods(), keys) as port, caller(port, keys, kind) as client:
        public = Keyring.load(keys).own(kind).public
        assert await client.call("who", timeout=DEADLINE) == [kind, public[:8]]


async def test_without_keys_a_call_has_no_caller() -> None:
    async with serving(Shell().methods()) as port, caller(port, None) as client:
        assert await client.call("who", timeout=DEADLINE) == [None, ""]


async def test_what_is_restricted_runs_for_the_kinds_named(keys: Path) -> None:
    shell = Shell()
    async with guarded(shell.methods(), keys) as port:
        for kind in ("master", "operator"):
            async with caller(port, keys, kind) as client:
                assert await client.call("invoke", kind, timeout=DEADLINE) == kind
        async with caller(port, keys, "agent") as client:
            with pytest.raises(RemoteError, match=r"Forbidden: invoke is for .* kind agent"):
                await client.call("invoke", "x", timeout=DEADLINE)
            with pytest.raises(RemoteError, match="Forbidden: exec is for"):
                await anext(client.stream("exec", "x", timeout=DEADLINE))
    assert [call.caller for call in shell.calls] == ["master", "operator"]


async def test_what_is_restricted_is_refused_without_keys_unless_insecure() -> None:
    shell = Shell()
    async with serving(shell.methods()) as port, caller(port, None) as client:
        with pytest.raises(RemoteError, match=r"Forbidden: .* keys only: set KONTROL_KEYS"):
            await client.call("invoke", "x", timeout=DEADLINE)
        with pytest.raises(RemoteError, match=r"Forbidden: .* keys only: say please"):
            await anext(client.stream("exec", "x", timeout=DEADLINE))
        names: Any = await client.call("_zerorpc_inspect", timeout=DEADLINE)
    assert not shell.calls
    assert names["methods"]["invoke"] == {"args": [{"name": "raw"}], "doc": "Run a command."}
    async with serving(shell.methods(insecure=True)) as port, caller(port, None) as client:
        assert await client.call("invoke", "x", timeout=DEADLINE) == "x"


def without_keys(line: str) -> bool:
    """Say whether this is about a peer without keys: it depends on who closes first."""
    return line.startswith("refused ") and ("it does not use keys" in line or _UNFINISHED in line)


async def refusal(client: Client, within: float = DEADLINE) -> str:
    async with client:
        with pytest.raises(LostRemote) as caught:
            await client.call("invoke", "x", timeout=within)
    return str(caught.value)


async def test_unknown_clients_run_nothing_and_get_the_reason(
    keys: Path, others: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shell = Shell()
    knowing = part(tmp_path / "knowing", others, "master.secret")
    (knowing / "masters").write_bytes((keys / "masters").read_bytes())
    async with guarded(shell.methods(), keys) as port:
        caplog.set_level(logging.INFO)
        assert "without keys (KONTROL_KEYS)" in await refusal(caller(port, None))
        await until(lambda: len(caplog.records) == 1)
        assert "none that is listed in masters" in await refusal(caller(port, others, "master"))
        assert "it does not accept our key" in await refusal(caller(port, knowing, "master"))
        # Each is logged once: who, and why.
        await until(lambda: len(caplog.records) >= 3)
    assert not shell.calls
    told = [record.getMessage() for record in caplog.records]
    assert without_keys(told.pop(0))
    unknown = Keyring.load(others).own("master").public[:8]
    assert told.pop(0) == f"refused 127.0.0.1: {OTHER_KEY}"
    assert told == [
        f"refused 127.0.0.1: its key {unknown} is unknown; accepted here are {LISTS}",
    ]
    assert {record.levelno for record in caplog.records[1:]} == {logging.WARNING}


async def test_an_agent_does_not_even_let_other_agents_connect(
    keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shell = Shell()
    async with guarded(shell.methods(), keys, "agent") as port:
        client = caller(port, keys, "agent", ("agent",))
        assert "it does not accept our key" in await refusal(client)
        for kind in ("master", "operator"):
            async with caller(port, keys, kind, ("agent",)) as client:
                assert await client.call("invoke", kind, timeout=DEADLINE) == kind
    assert len(shell.calls) == 2
    (record,) = caplog.records
    assert "is of the agents; accepted here are masters, operators" in record.getMessage()


async def test_a_caller_finds_the_kind_that_answers(keys: Path) -> None:
    """A pod is an agent alone, or a master too, and then shows the master's key."""
    for own in ("agent", "master"):
        async with (
            guarded(Shell().methods(), keys, own) as port,
            caller(port, keys, "operator", ("agent", "master")) as client,
        ):
            assert await client.call("invoke", own, timeout=DEADLINE) == own


async def test_a_client_trusts_no_server_without_keys(keys: Path) -> None:
    shell = Shell()
    async with serving(shell.methods(insecure=True)) as port:
        assert "it uses no keys" in await refusal(caller(port, keys))
    assert not shell.calls


async def test_an_agent_cannot_play_the_master(keys: Path, tmp_path: Path) -> None:
    """The holder of an agent's key cannot have other agents report to it."""
    folder = part(tmp_path / "thief", keys, *NEEDS["agent"])
    (folder / "master.secret").write_bytes((keys / "agent.secret").read_bytes())
    (folder / "agents").write_text("", encoding="utf-8")
    shell = Shell()
    async with guarded(shell.methods(), folder, "master") as port:
        assert "none that is listed in masters" in await refusal(caller(port, keys))
    assert not shell.calls


async def test_the_reference_library_is_refused(
    keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = Ours()
    caplog.set_level(logging.INFO)
    async with (
        guarded(ours.methods(), keys) as port,
        peer("reference_client.py", port, BEAT) as its,
    ):
        say(its, "c.echo('x')")
        await until(lambda: bool(caplog.records))
    assert without_keys(caplog.records[0].getMessage())
    assert not ours.calls


async def test_a_plain_peer_gets_nothing_and_its_call_does_not_run(keys: Path) -> None:
    ours = Ours()
    call = msgpack.packb([{"message_id": 1, "v": 3}, "echo", ["x"]])
    async with guarded(ours.methods(), keys) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GREETING + READY + b"DEALER" + framed(b"", call))
        async with asyncio.timeout(DEADLINE):
            got = b""
            with contextlib.suppress(ConnectionResetError):
                got = await reader.read()
        writer.close()
        assert len(got) <= 64  # a greeting, which says what it speaks
    assert not ours.calls


async def test_a_gate_that_fails_accepts_no_key(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = Shell()
    failed: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    server = Server(shell.methods(), keys=Keyring.load(keys))
    async with running(server) as port:
        assert server._gate is not None
        monkeypatch.setattr(server._gate, "_serves", None)
        async with caller(port, keys, "master") as client:
            with pytest.raises(LostRemote):
                await client.call("invoke", "x", timeout=DEADLINE)
    assert failed
    assert not shell.calls


async def test_a_process_may_serve_several_endpoints_with_keys(keys: Path) -> None:
    async with (
        guarded(Shell().methods(), keys) as one,
        guarded(Shell().methods(), keys, "agent") as other,
        caller(one, keys, "operator") as client,
        caller(other, keys, "operator", ("agent",)) as second,
    ):
        assert await client.call("invoke", 1, timeout=DEADLINE) == 1
        assert await second.call("invoke", 2, timeout=DEADLINE) == 2


def test_keys_that_are_missing_are_told_at_once(keys: Path, tmp_path: Path) -> None:
    pod = Keyring.load(part(tmp_path / "pod", keys, *NEEDS["agent"]))
    with pytest.raises(KeysError, match=r"master\.secret"):
        Server({}, keys=pod)
    for name in ("masters", "operators"):
        (tmp_path / "pod" / name).unlink()
    with pytest.raises(KeysError, match=r"masters or .*operators: expected at least one"):
        Server({}, keys=Keyring.load(tmp_path / "pod"), own="agent")
    with pytest.raises(KeysError, match=r"operator\.secret"):
        Client("127.0.0.1", 1, keys=pod, as_="operator")
    with pytest.raises(KeysError, match="agents"):
        Client("127.0.0.1", 1, keys=pod, to=("agent",))


async def test_a_key_that_is_listed_no_more_ends_its_calls(keys: Path) -> None:
    ours = Ours()
    async with guarded(ours.methods(), keys) as port, caller(port, keys, "agent") as client:
        waiting = asyncio.create_task(client.call("wait", timeout=DEADLINE))
        await until(lambda: ours.running == 1)
        text = (keys / "agents").read_text(encoding="utf-8")
        (keys / "agents").write_text("", encoding="utf-8")
        with pytest.raises(RemoteError, match="Forbidden: the key of this connection"):
            await waiting
        await until(lambda: ours.running == 0)
        with pytest.raises(RemoteError, match=r"Forbidden: the key .* is not accepted any more"):
            await client.call("echo", "x", timeout=DEADLINE)
        (keys / "agents").write_text(text, encoding="utf-8")
        async with caller(port, keys, "agent") as again:
            assert await again.call("echo", "x", timeout=DEADLINE) == "x"


async def test_a_flood_of_connections_does_not_halt_the_process(keys: Path) -> None:

    def flood() -> None:
        for _ in range(1500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as one:
                one.sendall(GREETING)
                one.recv(1)

    async with guarded(Shell().methods(), keys) as port:
        async with caller(port, keys, "master") as client:
            assert await client.call("who", timeout=DEADLINE)
        await asyncio.to_thread(flood)
        async with caller(port, keys, "master") as client:
            assert await client.call("who", timeout=DEADLINE)
