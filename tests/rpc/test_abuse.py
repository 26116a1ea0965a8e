"""Hostile and broken peers: everything that can be answered is, and no other peer notices.

The server runs in a process of its own, so that its memory and its delays are its own.
"""

import asyncio
import contextlib
import random
from asyncio.subprocess import Process
from collections.abc import AsyncIterator

import msgpack
import pytest
import zmq
from tests.rpc.ours import Ours
from tests.rpc.support import (
    BEAT,
    DEADLINE,
    GREETING,
    READY,
    RawPeer,
    descriptors,
    framed,
    line,
    peer,
    resident,
    say,
    serving,
    shaken,
    until,
)
from tests.rpc.test_wire import HEADER, MALFORMED, event
from tests.support.descriptors import connections

from kontrol.rpc.client import Client
from kontrol.rpc.limits import Limits
from kontrol.rpc.server import Call

TIMES = 50


@contextlib.asynccontextmanager
async def bystander(port: int) -> AsyncIterator[list[float]]:
    """Call without pause as long as this is open; gives the seconds that each call took."""
    took: list[float] = []
    loop = asyncio.get_running_loop()
    async with Client("127.0.0.1", port) as client:

        async def call() -> None:
            while True:
                begun = loop.time()
                assert await client.call("echo", "x", timeout=DEADLINE) == "x"
                took.append(loop.time() - begun)

        task = asyncio.create_task(call())
        try:
            yield took
        finally:
            before = len(took)
            await until(lambda: len(took) > before + 20 or task.done())
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def undisturbed(took: list[float]) -> None:
    """Check delays, with room for a busy machine on which everything is slow."""
    assert len(took) >= 20
    assert max(took) < 5.0
    assert sorted(took)[len(took) // 2] < 0.1


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[tuple[Process, int]]:
    async with peer("echo_server.py") as process:
        yield process, int(await line(process))


async def test_every_malformed_event_gets_an_error() -> None:
    async with server() as (_, port), bystander(port) as took:
        for what, (frame, _, message_id) in MALFORMED.items():
            with RawPeer(port) as raw:
                for _ in range(TIMES):
                    raw.send(b"", frame)
                for _ in range(TIMES):
                    header, name, (error, message, _) = await raw.receive()
                    assert (name, error) == ("ERR", "ProtocolError"), what
                    assert message
                    assert header.get("response_to") == message_id
    undisturbed(took)


@pytest.mark.parametrize(
    ("name", "args", "error"),
    [("nonesuch", [], "NameError"), ("echo", [], "TypeError"), ("echo", [1, 2], "TypeError")],
)
async def test_every_impossible_call_gets_an_error(name: str, args: object, error: str) -> None:
    async with server() as (_, port), bystander(port) as took:
        with RawPeer(port) as raw:
            for n in range(TIMES):
                raw.emit({"message_id": n, "v": 3}, name, args)
            for n in range(TIMES):
                header, kind, told = await raw.receive()
                assert (header["response_to"], kind, told[0]) == (n, "ERR", error)
    undisturbed(took)


def junk() -> dict[str, tuple[bool, bytes]]:
    """Return what does not speak ZeroMQ, or stops in the middle; and whether after a handshake."""
    chance = random.Random(8000)
    whole = framed(b"", event(HEADER, "echo", ["x" * 100]))
    return {
        "nothing": (False, b""),
        "random": (False, chance.randbytes(4096)),
        "random after a greeting": (False, GREETING + chance.randbytes(4096)),
        "HTTP": (False, b"GET / HTTP/1.1\r\nHost: kontrol\r\n\r\n"),
        "TLS": (False, bytes.fromhex("16030100c8010000c40303") + chance.randbytes(200)),
        "half a greeting": (False, GREETING[:20]),
        "half a handshake": (False, GREETING + READY[:9]),
        "an event too early": (False, GREETING + READY + b"DEALER" + whole),
        "nothing after a handshake": (True, b""),
        "random after a handshake": (True, chance.randbytes(4096)),
        "half an event": (True, whole[:-40]),
        "a frame of 4 GiB": (True, b"\x02" + (2**32).to_bytes(8) + bytes(99)),
        "a frame over the limit": (True, b"\x02" + (2**21 + 1).to_bytes(8) + bytes(99)),
        "a frame that is not read": (True, b"\x02" + (2**23 + 1).to_bytes(8) + bytes(99)),
        "an answer to nothing": (
            True,
            framed(b"", event(HEADER | {"response_to": "?"}, "OK", [1])),
        ),
    }


@pytest.mark.parametrize("what", junk())
async def test_junk_on_the_port_disturbs_no_other_peer(what: str) -> None:
    async with server() as (_, port), bystander(port) as took, contextlib.AsyncExitStack() as stack:
        for _ in range(TIMES):
            after, data = junk()[what]
            open_one = shaken(port) if after else asyncio.open_connection("127.0.0.1", port)
            _, writer = await open_one
            stack.callback(writer.close)
            writer.write(data)
        seen = len(took)
        await until(lambda: len(took) > seen + 100)
    undisturbed(took)


async def test_a_flood_of_hostile_structures_delays_no_other_peer_for_long() -> None:
    start = event(HEADER, "echo", [])[:-1]
    flood = [
        start + b"\xdd\x00\x1f\xff\xff" + b"\x90" * (2**21 - 60),
        start + b"\xdc\x1f\x00" * 60 + b"\x90" * 9000,
        msgpack.packb([HEADER, "echo", ["x" * (2**21 - 100)]]),
    ]
    async with server() as (process, port), bystander(port) as took:
        with RawPeer(port) as raw:
            for frame in flood:
                for _ in range(TIMES):
                    raw.send(b"", frame)
                    await asyncio.sleep(0)  # let the bystander, in this process, have its turn
                for _ in range(TIMES):
                    await raw.receive()
        assert resident(process) < 400 * 1024
    undisturbed(took)


async def test_five_thousand_connections() -> None:
    most = connections(5000)
    async with (
        server() as (process, port),
        peer("crowd.py", port) as crowd,
        bystander(port) as took,
    ):
        idle = descriptors(process)
        sizes = [resident(process)]
        for many in (most, 500, 500, 500, 500, 500, 500):
            say(crowd, str(many))
            assert await line(crowd) == str(many)
            await until(lambda: descriptors(process) >= idle + many)  # noqa: B023
            sizes.append(resident(process))
            say(crowd, "0")
            assert await line(crowd) == "0"
            await until(lambda: descriptors(process) <= idle + 5)
        assert sizes[1] - sizes[0] < most * 32, f"KiB: {sizes}"
        assert sizes[-1] - sizes[-4] < 6 * 1024, f"KiB: {sizes}"  # a leak would be 13 MiB a time
    undisturbed(took)


async def test_an_endless_stream_delays_no_other_call() -> None:
    """Its handler never waits for anything; neither for its caller, who may be gone by now."""
    open_ones = 0

    async def endless(_call: Call) -> AsyncIterator[object]:
        nonlocal open_ones
        open_ones += 1
        try:
            while True:
                yield 1
        finally:
            open_ones -= 1

    ours = Ours()
    async with serving({"endless": endless, "echo": ours.echo}) as port:
        with RawPeer(port) as raw:
            raw.call("m", "endless")
            assert (await raw.receive())[1] == "STREAM"
            raw.emit({"message_id": 1, "v": 3, "response_to": "m"}, "_zpc_more", [2**31 - 1])
            async with Client("127.0.0.1", port, heartbeat=BEAT) as client:
                assert await client.call("echo", "x", timeout=DEADLINE) == "x"
            assert open_ones == 1
        await until(lambda: not open_ones)


async def test_a_peer_that_reads_nothing_is_put_out_with_what_waits_for_it() -> None:
    open_ones = 0

    async def endless(_call: Call) -> AsyncIterator[object]:
        nonlocal open_ones
        open_ones += 1
        try:
            while True:
                yield "x" * 500_000
        finally:
            open_ones -= 1

    limits = Limits(unread=4, deaf=0.5)
    async with serving({"endless": endless}, heartbeat=1000.0, limits=limits) as port:
        deaf: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        for option, value in ((zmq.RCVHWM, 1), (zmq.RECONNECT_IVL, -1), (zmq.LINGER, 0)):
            deaf.setsockopt(option, value)
        with deaf.connect(f"tcp://127.0.0.1:{port}"):
            header = {"message_id": "m", "v": 3}
            more = [{"message_id": "n", "v": 3, "response_to": "m"}, "_zpc_more", [2**31 - 1]]
            for sent in ([header, "endless", []], more):
                deaf.send_multipart([b"", msgpack.packb(sent)])
            await until(lambda: open_ones == 1)
            await until(lambda: not open_ones)
        deaf.close()
