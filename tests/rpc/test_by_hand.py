"""Our server against hand-made events, as Python 2 and other peers send them."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgpack import packb
from tests.rpc.ours import Ours
from tests.rpc.support import BEAT, DEADLINE, RawPeer, framed, serving, shaken, until

from kontrol.rpc.client import Client
from kontrol.rpc.limits import Limits
from kontrol.rpc.server import Call


@pytest.mark.parametrize("message_id", [b"\xff\x00id", "id", 7, 2**63, b"", "héllo"])
async def test_a_message_id_comes_back_as_it_was(message_id: object) -> None:
    async with serving(Ours().methods()) as port:
        with RawPeer(port) as raw:
            raw.call(message_id, "echo", "x")
            header, name, args = await raw.receive()
            assert (name, args) == ("OK", ["x"])
            assert header["response_to"] == message_id
            assert type(header["response_to"]) is type(message_id)
            assert header["v"] == 3


async def test_python_2_is_understood_and_can_read_the_answer() -> None:
    async with serving(Ours().methods()) as port:
        with RawPeer(port) as raw:
            raw.emit({b"message_id": b"i", b"v": 3}, b"echo", [b"h\xc3\xa9"])
            assert (await raw.receive())[1:] == ["OK", ["hé"]]
            raw.emit({"message_id": "i", "v": 3}, "echo", [b"h\xc3\xa9"], use_bin_type=False)
            assert (await raw.receive())[1:] == ["OK", ["hé"]]
            raw.call(b"i", "echo", b"\xff")
            assert (await raw.receive())[1:] == ["OK", [b"\xff"]]


async def test_heartbeats_only_for_calls_that_last() -> None:
    ours = Ours()
    async with serving(ours.methods()) as port:
        with RawPeer(port) as raw:
            raw.call(b"long", "wait")
            raw.call(b"short", "echo", 1)
            assert (await raw.receive(beats=True))[1] == "OK"
            header, name, args = await raw.receive(beats=True)
            assert (header["response_to"], name, args) == (b"long", "_zpc_hb", [0])
            ours.go.set()
            assert (await raw.receive())[1:] == ["OK", ["went"]]


async def test_a_caller_that_never_beats_is_lost() -> None:
    ours = Ours()
    async with serving(ours.methods()) as port:
        with RawPeer(port) as raw:
            raw.call(b"long", "wait")
            await until(lambda: ours.running == 1)
            begun = asyncio.get_running_loop().time()
            await until(lambda: ours.running == 0)
            assert 2.5 * BEAT < asyncio.get_running_loop().time() - begun < 4 * BEAT + 1


async def test_peers_cannot_touch_each_others_calls() -> None:
    ours = Ours()
    async with serving(ours.methods()) as port:
        with RawPeer(port) as one, RawPeer(port) as other:
            one.call(b"same", "wait")
            await until(lambda: ours.running == 1)
            header = {"message_id": b"x", "v": 3, "response_to": b"same"}
            other.emit(header, "ERR", ["Cancelled", "", ""])
            other.call(b"same", "echo", "mine")
            assert (await other.receive())[1:] == ["OK", ["mine"]]
            assert ours.running == 1
            ours.go.set()
            assert (await one.receive())[1:] == ["OK", ["went"]]


async def test_what_breaks_an_open_call_ends_it_with_an_error() -> None:
    ours = Ours()
    async with serving(ours.methods()) as port:
        with RawPeer(port) as raw:
            for n, (name, args) in enumerate((("_zpc_more", [-1]), ("OK", [1]), ("NEW", []))):
                raw.call(n, "wait")
                raw.emit({"message_id": b"x", "v": 3, "response_to": n}, name, args)
                header, name, args = await raw.receive()
                assert (header["response_to"], name, args[0]) == (n, "ERR", "ProtocolError")
            await until(lambda: ours.running == 0, within=BEAT)
            raw.call(b"twice", "wait")
            raw.call(b"twice", "wait")
            assert "that of an open call" in (await raw.receive())[2][1]
            assert ours.running == 1


async def test_answers_to_calls_that_are_over_are_ignored() -> None:
    async with serving(Ours().methods()) as port:
        with RawPeer(port) as raw:
            for name, args in (("_zpc_hb", [0]), ("_zpc_more", [9]), ("OK", [1]), ("?", None)):
                raw.emit({"message_id": b"x", "v": 3, "response_to": b"gone"}, name, args)
            raw.call(b"id", "echo", "only")
            assert (await raw.receive())[1:] == ["OK", ["only"]]


async def test_envelopes_of_routers_in_between_come_back() -> None:
    async with serving(Ours().methods()) as port:
        with RawPeer(port) as raw:
            event = packb([{"message_id": b"i", "v": 3}, "echo", ["x"]])
            raw.send(event)  # no empty part, as the oldest peers
            assert (await raw.receive())[1] == "OK"
            raw.send(b"hop", b"", event)
            assert (await raw.receive())[1] == "OK"
            raw.send(*[b"hop"] * 20, b"", event)
            assert (await raw.receive())[2][1] == "23 parts are over the limit of 8"


async def test_a_peer_that_never_reads_keeps_its_handlers_waiting_and_nothing_else() -> None:
    class Fat(Ours):
        async def fat(self, _call: Call, n: int) -> AsyncIterator[object]:
            self.running += 1
            try:
                while True:
                    self.produced += 1
                    yield "x" * n
            finally:
                self.running -= 1

    ours = Fat()
    async with serving(ours.methods(), limits=Limits(unread=5_000_000)) as port:
        reader, deaf = await shaken(port)
        deaf.write(framed(b"", packb([{"message_id": b"i", "v": 3}, "fat", [500_000]])))
        header = {"message_id": b"j", "v": 3, "response_to": b"i"}
        deaf.write(framed(b"", packb([header, "_zpc_more", [10**6]])))
        await until(lambda: ours.produced > 10)
        async with Client("127.0.0.1", port, heartbeat=BEAT) as client:
            assert await client.call("echo", 1, timeout=DEADLINE) == 1
        assert ours.produced < 100
        await until(lambda: ours.running == 0, within=4 * BEAT + 1)  # lost: it never beats
        deaf.transport.abort()
        assert not reader.at_eof()
