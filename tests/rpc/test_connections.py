"""What a server does with its connections: bounds, eviction, removed keys, shortcuts, its end."""

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator
from pathlib import Path

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
    running,
    serving,
    shaken,
    until,
)

from kontrol.rpc.client import Client
from kontrol.rpc.limits import Limits
from kontrol.rpc.security.keyfolder import NEEDS, rotate
from kontrol.rpc.security.keys import Keyring
from kontrol.rpc.server import Server
from kontrol.rpc.sockets import affordable


def call(name: str, *args: object) -> bytes:
    return framed(b"", msgpack.packb([{"message_id": "m", "v": 3}, name, args]))


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the server closes the connection."""
    async with asyncio.timeout(DEADLINE):
        return await reader.read()


async def arrival(reader: asyncio.StreamReader, what: bytes) -> None:
    """Read until `what` has come."""
    async with asyncio.timeout(DEADLINE):
        await reader.readuntil(what)


async def test_the_idlest_connection_of_an_address_gives_way_and_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(Ours().methods(), limits=Limits(per_address=3)) as port:
        opened = [await shaken(port) for _ in range(3)]
        opened[0][1].write(call("echo", 1))
        await arrival(opened[0][0], b"OK")
        opened.append(await shaken(port))
        assert b"too many connections" in await rest(opened[1][0])
        (line,) = (record.getMessage() for record in caplog.records)
        assert line.startswith("too many connections, 3: closed the one that had said nothing")
        for i in (0, 2, 3):
            opened[i][1].write(call("echo", 1))
            await arrival(opened[i][0], b"OK")
        for _, writer in opened:
            writer.close()


async def test_a_connection_with_a_call_stays_and_the_newcomer_is_refused() -> None:
    ours = Ours()
    async with serving(ours.methods(), limits=Limits(connections=2)) as port:
        opened = [await shaken(port) for _ in range(2)]
        for _, writer in opened:
            writer.write(call("wait"))
        await until(lambda: ours.running == 2)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await rest(reader) == b""
        ours.go.set()
        for one, _ in opened:
            await arrival(one, b"went")
        for _, each in (*opened, (reader, writer)):
            each.close()


@pytest.mark.parametrize(
    ("descriptors", "most"),
    [(64, 32), (1024, 768), (20_000, 19_000), (1 << 20, 65_536), (resource.RLIM_INFINITY, 65_536)],
)
def test_connections_leave_descriptors_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, descriptors: int, most: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
    assert affordable(Limits().connections) == most


async def test_a_handshake_that_takes_too_long_is_told_so() -> None:
    async with serving(Ours().methods(), limits=Limits(handshake=0.2)) as port:
        for hello, told in ((b"", b""), (GREETING[:20], b""), (GREETING + READY, b"too slow")):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(hello)
            assert told in await rest(reader)
            writer.close()
        reader, writer = await shaken(port)
        await asyncio.sleep(0.4)  # the time itself is what has no effect any more
        writer.write(call("echo", 1))
        await arrival(reader, b"OK")
        writer.close()


async def test_of_incomplete_messages_the_largest_gives_way() -> None:
    limits = Limits(unfinished=100_000, readable=90_000)
    async with serving(Ours().methods(), limits=limits) as port:
        opened = [await shaken(port) for _ in range(3)]
        for (_, writer), size in zip(opened, (30_000, 50_000, 40_000), strict=True):
            writer.write(b"\x02" + (80_000).to_bytes(8) + bytes(size))
        assert b"the most of all" in await rest(opened[1][0])
        opened[2][1].write(bytes(40_000) + call("echo", 1))
        await arrival(opened[2][0], b"OK")
        for _, writer in opened:
            writer.close()


def at_once(value: object) -> asyncio.Future[object]:
    answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    answer.set_result(value)
    return answer


async def test_a_shortcut_answers_by_bytes_or_leaves_it() -> None:
    seen: list[bytes] = []

    def shortcut(text: bytes) -> asyncio.Future[object] | None:
        seen.append(text)
        return at_once("again") if seen.count(text) > 1 else None

    ours = Ours()
    server = Server(ours.methods(), heartbeat=BEAT, shortcuts={"echo": shortcut})
    async with running(server) as port:
        reader, writer = await shaken(port)
        writer.write(call("echo", "7") * 3)
        async with asyncio.timeout(DEADLINE):
            await reader.readuntil(b"OK\x91\xa5again")
            await reader.readuntil(b"OK\x91\xa5again")
        other, second = await shaken(port)
        second.write(call("echo", "8"))
        await arrival(other, b"OK\x91\xa18")
        assert seen == [b"7", b"7", b"7", b"8"]
        assert len(ours.calls) == 2
        assert ours.calls[0].peer != ours.calls[1].peer
        for one in (writer, second):
            one.close()


async def test_a_flood_on_one_connection_leaves_turns_to_others() -> None:
    done = 0

    def slow(text: bytes) -> asyncio.Future[object] | None:
        nonlocal done
        if text != b"flood":
            return None
        end = asyncio.get_running_loop().time() + 0.001
        while asyncio.get_running_loop().time() < end:
            pass
        done += 1
        return at_once("x")

    server = Server(Ours().methods(), shortcuts={"echo": slow})
    async with running(server) as port, Client("127.0.0.1", port) as client:
        await client.call("echo", 1, timeout=DEADLINE)
        _, writer = await shaken(port)
        writer.write(call("echo", "flood") * 400)
        await until(lambda: done > 0)
        assert await client.call("echo", 1, timeout=DEADLINE) == 1
        assert done < 200
        await until(lambda: done == 400)
        writer.close()


async def test_a_removed_key_closes_an_idle_connection_within_a_second(tmp_path: Path) -> None:
    keys = cluster(tmp_path / "keys")
    mine = part(tmp_path / "mine", keys, *NEEDS["operator"])
    async with guarded(Ours().methods(), keys) as port, caller(port, mine, "operator") as client:
        assert await client.call("echo", 1, timeout=DEADLINE) == 1
        connection = client._connection
        assert connection is not None
        (keys / "operators").write_text("# none\n", encoding="utf-8")
        await until(lambda: connection.ended is not None, within=2.0)


async def test_a_new_key_of_a_server_interrupts_no_connection(tmp_path: Path) -> None:
    whole = cluster(tmp_path / "whole")
    master = part(tmp_path / "master", whole, *NEEDS["master"])
    ours = Ours()
    async with guarded(ours.methods(), master) as port, caller(port, whole, "operator") as client:
        waiting = asyncio.create_task(client.call("wait", timeout=DEADLINE))
        await until(lambda: ours.running == 1)
        was = Keyring.load(master).own("master")
        for _ in range(2):
            rotate(whole, "master", "2026-11-29")
            part(master, whole, *NEEDS["master"])
        assert Keyring.load(master).own("master") != was
        async with caller(port, whole) as other:
            await until_accepted(other)
        ours.go.set()
        assert await waiting == "went"


async def until_accepted(client: Client) -> None:
    async with asyncio.timeout(DEADLINE):
        while True:
            with contextlib.suppress(Exception):
                await client.call("echo", 1, timeout=DEADLINE)
                return
            await asyncio.sleep(0.05)


async def test_what_was_answered_before_the_end_arrives() -> None:
    fat = "x" * 1_000_000

    async def last(_call: object) -> AsyncIterator[object]:
        yield fat
        asyncio.get_running_loop().call_soon(task.cancel)

    server = Server({"last": last})
    port = await server.bind("127.0.0.1", 0)
    task = asyncio.create_task(server.serve())
    reader, writer = await shaken(port)
    writer.write(call("last"))
    assert fat.encode() in await rest(reader)
    with pytest.raises(asyncio.CancelledError):
        await task
    writer.close()
