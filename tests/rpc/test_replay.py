"""What an observer on the network can do with what it sees of a port with keys: nothing.

Each attack is made on a port without keys too, where it succeeds: so it is one.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.rpc.keyed import caller, cluster, guarded
from tests.rpc.ours import Ours
from tests.rpc.support import DEADLINE, serving, until
from tests.rpc.tap import Tap, connected, tapped

from kontrol.rpc.errors import LostRemote, RpcError

SECRET = "the payload of a pod, which is secret"


@contextlib.asynccontextmanager
async def endpoint(keys: Path | None) -> AsyncIterator[tuple[Ours, Tap, int, int]]:
    """Serve, with keys if there are some; gives the port itself, and that of a tap before it."""
    ours = Ours()
    methods = ours.methods()
    async with (
        serving(methods) if keys is None else guarded(methods, keys) as port,
        tapped(port) as (tap, way),
    ):
        yield ours, tap, way, port


@pytest.fixture(params=["with keys", "without keys"])
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return cluster(tmp_path / "keys") if request.param == "with keys" else None


async def test_the_network_sees_no_content(keys: Path | None) -> None:
    async with endpoint(keys) as (_, tap, way, _), caller(way, keys, "master") as client:
        assert await client.call("echo", SECRET, timeout=DEADLINE) == SECRET
    for word in (SECRET, "echo", "message_id"):
        assert (word.encode() in tap.seen) == (keys is None), word


async def test_a_captured_connection_cannot_be_replayed(keys: Path | None) -> None:
    async with endpoint(keys) as (ours, tap, way, port):
        async with caller(way, keys, "master") as client:
            await client.call("echo", "once", timeout=DEADLINE)
        assert len(ours.calls) == 1
        chunks, answers = list(tap.sent), len(tap.answered)
        for _ in range(20):
            with contextlib.suppress(ConnectionError):
                async with connected(port) as (reader, writer):
                    for chunk in chunks:
                        writer.write(chunk)
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(reader.read(65536), 0.1)
                    if keys is None:
                        await until(lambda: len(ours.calls) > 1)
                        break
                    async with asyncio.timeout(DEADLINE):
                        # The server closes: its peer has to be proved again.
                        while await reader.read(65536):
                            pass
        async with caller(port, keys, "master") as client:
            assert await client.call("echo", "still there", timeout=DEADLINE) == "still there"
    assert answers
    again = [call for call in ours.calls[1:] if call.args == ("once",)]
    assert bool(again) == (keys is None)


async def test_a_message_cannot_be_repeated_within_its_connection(keys: Path | None) -> None:
    async with endpoint(keys) as (ours, tap, way, port):
        async with caller(way, keys, "master") as client:
            await client.call("echo", "once", timeout=DEADLINE)
            tap.inject(tap.sent[-1])
            if keys is None:
                await until(lambda: len(ours.calls) == 2)
            else:  # that connection is closed
                with contextlib.suppress(LostRemote):
                    await client.call("echo", "after", timeout=DEADLINE)
        async with caller(port, keys, "master") as client:
            assert await client.call("echo", "still there", timeout=DEADLINE) == "still there"
    assert [call.args[0] for call in ours.calls].count("once") == (2 if keys is None else 1)


async def test_a_changed_byte_ends_the_connection_and_nothing_else(tmp_path: Path) -> None:
    keys = cluster(tmp_path / "keys")
    async with endpoint(keys) as (ours, tap, way, port), caller(way, keys, "master") as client:
        await client.call("echo", "first", timeout=DEADLINE)
        chunk = bytearray(tap.sent[-1])
        for at in range(0, len(chunk), 7):
            changed = bytes(chunk[:at]) + bytes([chunk[at] ^ 1]) + bytes(chunk[at + 1 :])
            async with connected(port) as (_, writer):
                writer.write(b"".join(tap.sent[:-1]) + changed)
        with contextlib.suppress(RpcError):
            await client.call("echo", "second", timeout=DEADLINE)
        async with caller(port, keys, "master") as other:
            assert await other.call("echo", "still there", timeout=DEADLINE) == "still there"
    assert {call.args[0] for call in ours.calls} == {"first", "second", "still there"}
