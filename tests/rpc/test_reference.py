"""Ours against the reference library, each as client and as server of the other."""

import asyncio
import json
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping

import pytest
from tests.rpc.support import BEAT, DEADLINE, line, peer, say, serving, until

from kontrol.rpc.client import Client
from kontrol.rpc.errors import LostRemote, Refused, RemoteError
from kontrol.rpc.server import Call, Method


class Ours:
    """Our methods, and what happened to them."""

    def __init__(self) -> None:
        self.produced = 0
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def echo(self, _call: Call, value: object) -> object:
        """Return the value.

        Nothing else.
        """
        return value

    async def refuse(self, _call: Call, message: object = "no") -> object:
        raise Refused("Forbidden", str(message))

    async def fail(self, _call: Call) -> object:
        raise ValueError("a secret")

    async def slow(self, _call: Call, seconds: float) -> object:
        self.started.set()
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return "slept"

    async def count(self, _call: Call, n: int) -> AsyncIterator[object]:
        for i in range(n):
            self.produced = i + 1
            yield i

    async def drip(self, _call: Call, n: int, pause: float) -> AsyncIterator[object]:
        for i in range(n):
            yield i
            await asyncio.sleep(pause)

    async def broken(self, _call: Call, n: int) -> AsyncIterator[object]:
        for i in range(n):
            yield i
        raise Refused("Broken", "no more")

    def methods(self) -> Mapping[str, Method]:
        names = ("echo", "refuse", "fail", "slow", "count", "drip", "broken")
        return {name: getattr(self, name) for name in names}


async def ask(process: Process, expression: str) -> object:
    say(process, expression)
    return json.loads(await line(process))


async def test_its_client_calls_our_server() -> None:
    async with (
        serving(Ours().methods()) as port,
        peer("reference_client.py", port, BEAT) as its,
    ):
        for value in ("héllo", 7, -(2**63), 2**64 - 1, 1.5, None, True, [1, [2, {"k": ["v"]}]], ""):
            assert await ask(its, f"c.echo({value!r})") == value
        assert await ask(its, "c.echo(b'python 2')") == "python 2"
        assert await ask(its, r"c.echo(b'\xff\xfe')") == repr(b"\xff\xfe")
        assert await ask(its, "len(c.echo('x' * 2000000))") == 2_000_000
        assert await ask(its, "c._zerorpc_ping()") == ["pong", "kontrol"]
        assert await ask(its, "c._zerorpc_name()") == "kontrol"
        assert await ask(its, "c._zerorpc_list()") == list(Ours().methods())
        assert await ask(its, "c._zerorpc_help('echo')") == "Return the value.\n\nNothing else."
        assert await ask(its, "c._zerorpc_help('refuse')") == ""  # it has no documentation
        assert await ask(its, "c._zerorpc_args('refuse')") == [["message"], None, None, ["no"]]
        inspected = await ask(its, "c._zerorpc_inspect()")
        assert isinstance(inspected, dict)
        assert inspected["name"] == "kontrol"
        assert inspected["methods"]["refuse"] == {
            "args": [{"name": "message", "default": "no"}],
            "doc": "",
        }


async def test_its_client_gets_our_errors() -> None:
    async with (
        serving(Ours().methods()) as port,
        peer("reference_client.py", port, BEAT) as its,
    ):
        refused = await ask(its, "c.refuse('not you')")
        assert refused == {"name": "Forbidden", "msg": "not you", "str": "Forbidden: not you"}
        unknown = await ask(its, "c.nonesuch()")
        assert isinstance(unknown, dict)
        assert unknown["name"] == "NameError"
        assert "nonesuch" in unknown["msg"]
        arity = await ask(its, "c.echo(1, 2)")
        assert isinstance(arity, dict)
        assert arity["name"] == "TypeError"
        assert arity["msg"] == "echo(value) takes 1 argument, got 2"
        failed = await ask(its, "c.fail()")
        assert isinstance(failed, dict)
        assert failed["name"] == "InternalError"
        assert "secret" not in json.dumps(failed)


async def test_its_client_is_told_that_a_call_is_too_large() -> None:
    async with (
        serving(Ours().methods()) as port,
        peer("reference_client.py", port, BEAT) as client,
    ):
        for size in (2_100_000, 5_000_000, 8_000_000):
            told = await ask(client, f"c.echo('x' * {size})")
            assert isinstance(told, dict)
            assert told["name"] == "ProtocolError"
            assert f"{size // 1000}" in told["msg"]
            assert "bytes are over the limit of 2097152 for one event" in told["msg"]
        assert await ask(client, "len(c.echo('x' * 2_000_000))") == 2_000_000


async def test_its_client_reads_our_streams() -> None:
    ours = Ours()
    async with (
        serving(ours.methods()) as port,
        peer("reference_client.py", port, BEAT) as its,
    ):
        assert await ask(its, "list(c.count(0))") == []
        assert await ask(its, "list(c.count(1))") == [0]
        assert await ask(its, "sum(c.count(1000))") == sum(range(1000))
        assert await ask(its, f"list(c.drip(3, {BEAT * 1.3}))") == [0, 1, 2]
        broken = await ask(its, "list(c.broken(150))")
        assert isinstance(broken, dict)
        assert broken["name"] == "Broken"
        assert await ask(its, "list(c.echo([1]))") == [1]


async def test_its_slow_client_holds_our_stream_back() -> None:
    ours = Ours()
    async with (
        serving(ours.methods()) as port,
        peer("reference_client.py", port, BEAT) as its,
    ):
        assert await ask(its, "globals().update(s=c.count(10**6)) or [next(s), next(s)]") == [0, 1]
        # A round trip after that, whatever the stream had to say has been said.
        assert await ask(its, "c.echo('still here')") == "still here"
        assert ours.produced <= 1 + 100 + 1
        assert await ask(its, "[next(s) for _ in range(500)][-1]") == 501
        assert await ask(its, "c.echo('still here')") == "still here"
        assert 502 <= ours.produced <= 502 + 100


@pytest.mark.parametrize("mode", ["active", "passive"])
async def test_its_long_call_outlives_many_heartbeats(mode: str) -> None:
    async with (
        serving(Ours().methods()) as port,
        peer("reference_client.py", port, BEAT, mode) as its,
    ):
        assert await ask(its, f"c.slow({BEAT * 4})") == "slept"


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
async def test_our_handler_ends_with_its_client(blow: signal.Signals) -> None:
    ours = Ours()
    async with (
        serving(ours.methods()) as port,
        peer("reference_client.py", port, BEAT) as its,
    ):
        say(its, "c.slow(60)")
        async with asyncio.timeout(DEADLINE):
            await ours.started.wait()
            assert not ours.cancelled.is_set()
            its.send_signal(blow)
            begun = asyncio.get_running_loop().time()
            await ours.cancelled.wait()
            assert asyncio.get_running_loop().time() - begun < 4 * BEAT + 1


async def test_its_command_line_asks_our_server() -> None:
    async with serving(Ours().methods()) as port:

        async def run(*args: str) -> str:
            where = f"tcp://127.0.0.1:{port}"
            async with peer("command_line.py", *args[:-1], where, *args[-1].split()) as its:
                async with asyncio.timeout(DEADLINE):
                    out, _ = await its.communicate()
                assert its.returncode == 0
                return out.decode("utf-8")

        assert "refuse(message=no)" in await run("--inspect", "")
        assert "Nothing else." in await run("--inspect", "echo")
        listed = await run("")
        assert listed.startswith("[kontrol]")
        assert "Return the value." in listed
        assert await run("_zerorpc_ping") == "['pong', 'kontrol']\n"
        assert await run("echo hello") == "'hello'\n"
        assert await run("-j", "echo [1,2]") == "[1, 2]\n"
        assert await run("-j", "-pj", "count 3") == "[0,1,2]"


async def test_our_client_calls_its_server() -> None:
    async with peer("reference_server.py", BEAT) as its:
        port = int(await line(its))
        async with Client("127.0.0.1", port, heartbeat=BEAT) as ours:
            for value in ("héllo", 7, -(2**63), 2**64 - 1, 1.5, None, True, [1, {"k": ["v"]}]):
                assert await ours.call("echo", value, timeout=DEADLINE) == value
            assert await ours.call("text", timeout=DEADLINE) == "python 2 says héllo"
            assert await ours.call("_zerorpc_ping", timeout=DEADLINE) == ["pong", "Methods"]
            many = (ours.call("echo", i, timeout=DEADLINE) for i in range(200))
            assert await asyncio.gather(*many) == list(range(200))
            with pytest.raises(RemoteError) as caught:
                await ours.call("fail", "told", timeout=DEADLINE)
            assert (caught.value.name, caught.value.message) == ("ValueError", "told")
            assert "Traceback" in caught.value.traceback
            with pytest.raises(RemoteError, match="NameError"):
                await ours.call("nonesuch", timeout=DEADLINE)
            assert await ours.call("slow", BEAT * 4, timeout=DEADLINE) == "slept"


async def test_our_client_reads_its_streams_at_its_own_pace() -> None:
    async with peer("reference_server.py", BEAT) as its:
        port = int(await line(its))
        async with Client("127.0.0.1", port, heartbeat=BEAT) as ours:
            assert [i async for i in ours.stream("count", 0)] == []
            assert [i async for i in ours.stream("count", 1000)] == list(range(1000))
            assert [i async for i in ours.stream("drip", 3, BEAT * 1.3)] == [0, 1, 2]
            broken = ours.stream("broken", 150)
            assert [await anext(broken) for _ in range(150)] == list(range(150))
            with pytest.raises(RemoteError, match="no more"):
                await anext(broken)
            slow = ours.stream("count", 10**6)
            assert [await anext(slow), await anext(slow)] == [0, 1]
            await ours.call("echo", None, timeout=DEADLINE)
            produced = await ours.call("produced", timeout=DEADLINE)
            assert isinstance(produced, int)
            assert produced <= 1 + 100 + 1
            await slow.aclose()
            assert await ours.call("echo", "on", timeout=DEADLINE) == "on"


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
async def test_our_client_notices_that_its_server_is_gone(blow: signal.Signals) -> None:
    async with peer("reference_server.py", BEAT) as its:
        port = int(await line(its))
        async with Client("127.0.0.1", port, heartbeat=BEAT) as ours:
            await ours.call("echo", 1, timeout=DEADLINE)
            waiting = asyncio.create_task(ours.call("slow", 60, timeout=60))
            stream = ours.stream("drip", 1000, 0.05)
            await anext(stream)
            its.send_signal(blow)
            begun = asyncio.get_running_loop().time()
            with pytest.raises(LostRemote):
                await waiting
            with pytest.raises(LostRemote):
                async for _ in stream:
                    pass
            took = asyncio.get_running_loop().time() - begun
            assert took < (1 if blow is signal.SIGKILL else 4 * BEAT + 1)


async def test_calls_outlive_the_default_heartbeats_both_ways() -> None:
    """At 5 s a peer that never beats is lost at 15 s: one that does is still there after 30."""
    ours = Ours()
    async with (
        serving(ours.methods(), heartbeat=5.0) as port,
        peer("reference_client.py", port, 5) as its_client,
        peer("reference_server.py", 5) as its_server,
    ):
        its_port = int(await line(its_server))
        async with Client("127.0.0.1", its_port) as client, asyncio.timeout(50):
            say(its_client, "c.slow(30.0)")
            assert await client.call("slow", 30.0, timeout=40) == "slept"
            assert json.loads(await line(its_client)) == "slept"


async def test_a_call_to_a_server_that_comes_back() -> None:
    async with peer("reference_server.py", BEAT) as its:
        port = int(await line(its))
        async with Client("127.0.0.1", port, heartbeat=BEAT) as ours:
            await ours.call("echo", 1, timeout=DEADLINE)
            its.kill()
            await its.wait()

            def lost() -> bool:
                return ours._connection is not None and ours._connection.ended is not None

            await until(lost)
            with pytest.raises(LostRemote, match="refused"):
                await ours.call("echo", 1, timeout=DEADLINE)
