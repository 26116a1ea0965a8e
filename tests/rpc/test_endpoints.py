"""Our client and our server together, and our server against hand-made events."""

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Mapping

import pytest
from msgpack import packb, unpackb
from tests.rpc.ours import Ours, both
from tests.rpc.support import (
    BEAT,
    DEADLINE,
    GREETING,
    READY,
    framed,
    serving,
    until,
)

from kontrol.listener import BindError
from kontrol.rpc.client import Client
from kontrol.rpc.errors import (
    CallTimeout,
    LostRemote,
    ProtocolError,
    RemoteError,
    Unsendable,
)
from kontrol.rpc.limits import Limits
from kontrol.rpc.server import Call, Method, Server


async def test_calls_share_a_connection_and_do_not_wait_for_each_other() -> None:
    async with both() as (ours, client):
        waiting = [asyncio.create_task(client.call("wait", timeout=DEADLINE)) for _ in range(50)]
        assert await client.call("echo", [1, {"a": b"b"}], timeout=DEADLINE) == [1, {"a": "b"}]
        await until(lambda: ours.running == 50)
        ours.go.set()
        assert await asyncio.gather(*waiting) == ["went"] * 50
        assert await client.call("many", *range(40), timeout=DEADLINE) == 40


async def test_a_handler_is_told_who_calls() -> None:
    async with both() as (ours, client):
        await client.call("echo", "x", timeout=DEADLINE)
        (call,) = ours.calls
        assert (call.method, call.args) == ("echo", ("x",))
        assert call.peer.startswith("127.0.0.1#")


async def test_a_call_that_is_given_up_ends_its_handler_at_once() -> None:
    async with both() as (ours, client):
        await client.call("echo", 1, timeout=DEADLINE)  # connects
        with pytest.raises(CallTimeout, match=r"no answer within 0\.05 s"):
            await client.call("wait", timeout=0.05)
        await until(lambda: ours.running == 0, within=BEAT)
        task = asyncio.create_task(client.call("wait", timeout=DEADLINE))
        await until(lambda: ours.running == 1)
        task.cancel()
        await until(lambda: ours.running == 0, within=BEAT)


async def test_a_stream_that_is_closed_early_ends_its_handler_at_once() -> None:
    async with both() as (ours, client):
        stream = client.stream("count", 10**6)
        assert await anext(stream) == 0
        assert ours.running == 1
        await stream.aclose()
        await until(lambda: ours.running == 0, within=BEAT)
        assert ours.produced <= 102


async def test_a_stream_waits_for_its_consumer() -> None:
    async with both() as (ours, client):
        seen = 0
        async for _ in client.stream("count", 1000):
            seen += 1
            if seen % 100 == 0:
                await client.call("echo", None, timeout=DEADLINE)
                assert ours.produced <= seen + 101
        assert seen == 1000


async def test_a_consumer_slower_than_the_heartbeats_keeps_its_stream() -> None:
    async with both() as (ours, client):
        stream = client.stream("count", 300)
        assert await anext(stream) == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(BEAT * 4):
                await ours.go.wait()
        assert [i async for i in stream] == list(range(1, 300))


async def test_streams_run_side_by_side() -> None:
    async def total(n: int) -> int:
        return sum([1 async for _ in client.stream("count", n)])

    async with both() as (_, client):
        assert await asyncio.gather(*(total(200 + i) for i in range(40))) == list(range(200, 240))


async def test_an_error_after_items_comes_after_them() -> None:
    async with both() as (_, client):
        for n in (0, 1, 2, 101, 102):
            stream = client.stream("broken", n)
            assert [await anext(stream) for _ in range(n)] == list(range(n))
            with pytest.raises(RemoteError, match="Broken: no more"):
                await anext(stream)


async def test_a_silent_stream_times_out_between_items() -> None:
    class Stuck(Ours):
        async def stuck(self, _call: Call) -> AsyncIterator[object]:
            yield 1
            await self.go.wait()

        def methods(self) -> Mapping[str, Method]:
            return {"stuck": self.stuck}

    async with (
        serving(Stuck().methods()) as port,
        Client("127.0.0.1", port, heartbeat=BEAT) as client,
    ):
        stream = client.stream("stuck", timeout=1.0)
        assert await anext(stream) == 1
        with pytest.raises(CallTimeout):
            await anext(stream)


async def test_the_wrong_kind_of_call_says_so() -> None:
    async with both() as (_, client):
        with pytest.raises(ProtocolError, match=r"call it with stream\(\)"):
            await client.call("count", 5, timeout=DEADLINE)
        with pytest.raises(ProtocolError, match=r"call it with call\(\)"):
            await anext(client.stream("echo", 5))
        assert await client.call("echo", 5, timeout=DEADLINE) == 5


async def test_answers_that_cannot_be_sent_are_errors() -> None:
    async with both() as (_, client):
        with pytest.raises(RemoteError, match="Unsendable: OK: its value has no msgpack form"):
            await client.call("odd", timeout=DEADLINE)
        with pytest.raises(RemoteError, match="InternalError: own_cancel was cancelled"):
            await client.call("own_cancel", timeout=DEADLINE)
        stream = client.stream("fat", 3 * 2**20)
        assert await anext(stream) == "first"
        with pytest.raises(RemoteError, match="over the limit of 2097152"):
            await anext(stream)
        with pytest.raises(Unsendable):
            await client.call("echo", "x" * (3 * 2**20), timeout=DEADLINE)
        assert len(str(await client.call("echo", "x" * 2_000_000, timeout=DEADLINE))) == 2_000_000


async def test_limits_on_calls_are_answered() -> None:
    async with both(Limits(calls=3, calls_per_peer=2)) as (ours, client):
        port = client._port
        waiting = [asyncio.create_task(client.call("wait", timeout=DEADLINE)) for _ in range(2)]
        await until(lambda: ours.running == 2)
        with pytest.raises(RemoteError, match="Busy: this connection has 2 calls"):
            await client.call("echo", 1, timeout=DEADLINE)
        async with Client("127.0.0.1", port) as other, Client("127.0.0.1", port) as third:
            waiting.append(asyncio.create_task(other.call("wait", timeout=DEADLINE)))
            await until(lambda: ours.running == 3)
            with pytest.raises(RemoteError, match="Busy: 3 calls are in progress"):
                await third.call("echo", 1, timeout=DEADLINE)
            ours.go.set()
            assert await asyncio.gather(*waiting) == ["went"] * 3
            assert await third.call("echo", 1, timeout=DEADLINE) == 1


async def test_answers_wait_for_a_peer_that_is_slow_to_read() -> None:
    # Beats wait with the answers: at the default interval, they have the time.
    async with both(Limits(unread=2), heartbeat=5.0) as (_, client):
        fat = "x" * 500_000
        calls = (client.call("echo", fat, timeout=DEADLINE) for _ in range(60))
        assert await asyncio.gather(*calls) == [fat] * 60
        stream = client.stream("count", 500)
        assert [i async for i in stream] == list(range(500))


async def test_no_server_and_no_such_host_are_lost_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with Client("127.0.0.1", port) as client, asyncio.timeout(2):
        with pytest.raises(LostRemote, match=f"127.0.0.1:{port}: the connection was refused"):
            await client.call("echo", 1, timeout=DEADLINE)
    async with Client("no.such.host.invalid", 1) as client:
        with pytest.raises(LostRemote, match=r"no\.such\.host\.invalid"):
            await client.call("echo", 1, timeout=DEADLINE)


@pytest.mark.parametrize(
    ("address", "number"),
    [("255.255.255.255", errno.ENETUNREACH), ("fe80::1", errno.EINVAL)],
)
async def test_what_the_system_says_of_an_address_is_passed_on(address: str, number: int) -> None:
    async with Client(address, 9) as client:
        with pytest.raises(LostRemote) as raised:
            await client.call("echo", 1, timeout=DEADLINE)
    assert f":9: no connection: {os.strerror(number).lower()}" in str(raised.value)
    assert "refused" not in str(raised.value)


@pytest.mark.parametrize("number", [errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.EACCES])
async def test_every_errno_keeps_its_own_words(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_socket: object, _address: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", fail)
    async with Client("fd00::1", 8000) as client:
        with pytest.raises(LostRemote) as raised:
            await client.call("echo", 1, timeout=DEADLINE)
    said = f"no connection: {os.strerror(number).lower()}"
    assert str(raised.value) == f"tcp://[fd00::1]:8000: {said}"


async def test_a_client_finds_its_server_again() -> None:
    ours = Ours()
    async with serving(ours.methods()) as port:
        client = Client("127.0.0.1", port, heartbeat=BEAT)
        waiting = asyncio.create_task(client.call("wait", timeout=DEADLINE))
        await until(lambda: ours.running == 1)
    with pytest.raises(LostRemote, match="closed"):
        await waiting
    server = Server(ours.methods(), heartbeat=BEAT)
    await server.bind("127.0.0.1", port)
    task = asyncio.create_task(server.serve())
    async with client:
        assert await client.call("echo", "again", timeout=DEADLINE) == "again"
        pending = asyncio.create_task(client.call("wait", timeout=DEADLINE))
        await until(lambda: ours.running == 1)
    with pytest.raises(LostRemote, match="the client was closed"):
        await pending
    task.cancel()
    await asyncio.wait([task])


async def test_ends_that_meet_harm_nothing() -> None:
    """Both close at the same time."""
    for _ in range(200):
        connected: asyncio.Future[asyncio.StreamWriter] = asyncio.Future()

        async def accept(
            reader: asyncio.StreamReader,
            writer: asyncio.StreamWriter,
            connected: asyncio.Future[asyncio.StreamWriter] = connected,
        ) -> None:
            writer.write(GREETING + READY + b"ROUTER")
            await reader.readuntil(b"echo")
            connected.set_result(writer)

        async with await asyncio.start_server(accept, "127.0.0.1", 0) as fake:
            client = Client("127.0.0.1", fake.sockets[0].getsockname()[1])
            call = asyncio.create_task(client.call("echo", 1, timeout=DEADLINE))
            writer = await connected
            writer.transport.abort()
            await client.__aexit__(None, None, None)
            with pytest.raises(LostRemote):
                await call
    async with both() as (_, client):
        assert await client.call("echo", 1, timeout=DEADLINE) == 1


async def test_answers_that_come_with_the_end_of_their_connection_count() -> None:
    """The news of the end must not overtake what was said before it, however much that is."""
    many = 300

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING + READY + b"ROUTER")
        replies = b""
        for n in range(many):
            await reader.readuntil(b"\x01\x00\x00")  # the empty part, and the flags of the next
            header = unpackb(await reader.readexactly((await reader.readexactly(1))[0]))[0]
            reply = {"message_id": b"m", "v": 3, "response_to": header["message_id"]}
            replies += framed(b"", packb([reply, "OK", [n]]))
        writer.write(replies)
        await writer.drain()
        writer.close()

    async with (
        await asyncio.start_server(answer, "127.0.0.1", 0) as fake,
        Client("127.0.0.1", fake.sockets[0].getsockname()[1]) as client,
    ):
        calls = (client.call("echo", n, timeout=DEADLINE) for n in range(many))
        assert sorted(map(str, await asyncio.gather(*calls))) == sorted(map(str, range(many)))


async def test_a_server_that_ends_awaits_its_handlers() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def stubborn(_call: Call) -> object:
        started.set()
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            ended.set()

    async with serving({"stubborn": stubborn}) as port, Client("127.0.0.1", port) as client:
        task = asyncio.create_task(client.call("stubborn", timeout=DEADLINE))
        await started.wait()
        assert not ended.is_set()
    assert ended.is_set()
    with pytest.raises(LostRemote):
        await task


@pytest.mark.parametrize("host", ["", "*", "::1", "localhost"])
async def test_where_a_server_can_listen(host: str) -> None:
    ours = Ours()
    server = Server(ours.methods())
    port = await server.bind(host, 0)
    task = asyncio.create_task(server.serve())
    try:
        to = {"localhost": "localhost", "::1": "::1"}.get(host, "127.0.0.1")
        async with Client(to, port) as client:
            assert await client.call("echo", 1, timeout=DEADLINE) == 1
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_an_address_in_use_is_named() -> None:
    async with serving({}) as port:
        server = Server({})
        with pytest.raises(BindError, match=rf"127\.0\.0\.1:{port}: Address already in use"):
            await server.bind("127.0.0.1", port)
    unserved = Server({})
    await unserved.bind("127.0.0.1", 0)
    with pytest.raises(BindError, match="bound already"):
        await unserved.bind("127.0.0.1", 0)
    unserved.close()


async def test_a_server_not_bound_does_not_serve() -> None:
    with pytest.raises(BindError, match="before bind"):
        await Server({}).serve()


def test_methods_must_be_callable_over_the_wire() -> None:
    async def keyword(_call: Call, *, flag: bool) -> object:
        return flag

    async def nothing() -> object:
        return None

    def plain(_call: Call) -> object:
        return None

    for method, reason in ((keyword, "positional"), (nothing, "Call"), (plain, "async def")):
        with pytest.raises(TypeError, match=reason):
            Server({"m": method})  # type: ignore[dict-item]  # the very mistake
