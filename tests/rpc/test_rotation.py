"""Keys replaced while calls go on: no peer is refused, and the old keys end up worthless.

The folders here are those of two masters, of agents and of an operator; what `kontrol keys rotate`
changes in the whole is handed to them one by one, as Kubernetes would, in any order.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.rpc.keyed import caller, cluster, guarded, part
from tests.rpc.ours import Ours
from tests.rpc.support import BEAT, DEADLINE, until

from kontrol.rpc.client import Client
from kontrol.rpc.errors import LostRemote, RemoteError, RpcError
from kontrol.rpc.security.keyfolder import NEEDS, rotate
from kontrol.rpc.security.keys import KINDS, Keyring, Kind, list_file, secret_file

PINGERS = 20
RATE = 10  # pings per second of each
LONGEST = 1.5  # seconds: TTL/3 of the shortest TTL that tests use; a pod is lost after thrice that


class Pinger:
    """An agent, as far as its connection goes: a new one after each failure, like the reporter."""

    def __init__(self, port: int, keys: Keyring) -> None:
        self.port = port
        self.keys = keys
        self.last = 0.0
        self.silence = 0.0
        self.count = 0
        self.errors: list[str] = []

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self.last = loop.time()
        while True:
            async with Client("127.0.0.1", self.port, heartbeat=BEAT, keys=self.keys) as client:
                with contextlib.suppress(RpcError):
                    while True:
                        await self.ping(client)
                        await asyncio.sleep(1 / RATE)
            await asyncio.sleep(0.05)

    async def ping(self, client: Client) -> None:
        loop = asyncio.get_running_loop()
        try:
            await client.call("echo", "x", timeout=1)
        except RpcError as error:
            self.errors.append(str(error))
            raise
        self.count += 1
        self.silence = max(self.silence, loop.time() - self.last)
        self.last = loop.time()


@contextlib.asynccontextmanager
async def pinging(port: int, folders: list[Path]) -> AsyncIterator[list[Pinger]]:
    """Ping without pause from many agents."""
    pingers = [Pinger(port, Keyring.load(folders[i % len(folders)])) for i in range(PINGERS)]
    tasks = [asyncio.create_task(one.run()) for one in pingers]
    try:
        await until(lambda: all(one.count for one in pingers))
        for one in pingers:
            one.silence = (
                0.0  # the beginning, with twenty handshakes at the same time, is not the matter
            )
        yield pingers
        seen = [one.count for one in pingers]
        await until(lambda: all(one.count > n + 3 for one, n in zip(pingers, seen, strict=True)))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def hand_out(whole: Path, folders: dict[Path, Kind]) -> None:
    """Give each process its keys, in any order."""
    for folder in random.sample(list(folders), len(folders)):
        part(folder, whole, *NEEDS[folders[folder]])


@pytest.mark.parametrize("kind", KINDS)
async def test_no_pod_is_lost_while_a_key_is_rotated(tmp_path: Path, kind: Kind) -> None:
    whole = cluster(tmp_path / "whole")
    old = (whole / secret_file(kind)).read_bytes()
    agents = [tmp_path / f"agent{i}" for i in range(4)]
    master = tmp_path / "master"
    folders: dict[Path, Kind] = {master: "master", **dict.fromkeys(agents, "agent")}
    hand_out(whole, folders)
    ours = Ours()
    async with guarded(ours.methods(), master) as port, pinging(port, agents) as pingers:
        for number in (1, 2, 3):
            assert rotate(whole, kind, "2026-11-23").number == number
            hand_out(whole, folders)
            seen = [one.count for one in pingers]
            await until(
                lambda: all(one.count > n + RATE for one, n in zip(pingers, seen, strict=True))  # noqa: B023
            )
        await within_reach(port, whole, kind, old, tmp_path)
    assert max(one.silence for one in pingers) < LONGEST
    for one in pingers:  # an operator's key is nothing to agents; each other costs one connection
        assert len(one.errors) <= (0 if kind == "operator" else 8), one.errors


async def within_reach(port: int, whole: Path, kind: Kind, old: bytes, tmp_path: Path) -> None:
    """Check that the new key of that kind is good, and the old one is not."""
    async with caller(port, whole, kind) as client:
        assert await client.call("echo", "new", timeout=DEADLINE) == "new"
    thief = part(tmp_path / "thief", whole, *NEEDS[kind])
    (thief / secret_file(kind)).write_bytes(old)
    async with caller(port, thief, kind) as client:
        with pytest.raises(LostRemote, match="it does not accept our key"):
            await client.call("echo", "old", timeout=DEADLINE)


async def test_a_server_listens_with_its_new_key_without_a_restart(tmp_path: Path) -> None:
    """Even if the only sign of it is a caller who knows nothing but the new key."""
    whole = cluster(tmp_path / "whole")
    master = part(tmp_path / "master", whole, *NEEDS["master"])
    async with guarded(Ours().methods(), master) as port:
        rotate(whole, "master", "2026-11-23")
        rotate(whole, "master", "2026-11-24")
        part(master, whole, *NEEDS["master"])
        rotate(whole, "master", "2026-11-25")  # drops the old key from the lists
        async with caller(port, whole) as client:
            for _ in range(50):
                with contextlib.suppress(LostRemote):
                    assert await client.call("echo", "x", timeout=DEADLINE) == "x"
                    break
                await asyncio.sleep(0.05)
            else:
                pytest.fail("the server never took up its new key")


async def test_a_server_without_its_secret_goes_on_with_the_old(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = cluster(tmp_path / "whole")
    master = part(tmp_path / "master", whole, *NEEDS["master"])
    async with guarded(Ours().methods(), master) as port:
        (master / "master.secret").unlink()
        async with caller(port, whole) as client:
            assert await client.call("echo", "x", timeout=DEADLINE) == "x"
    assert "the key of this endpoint stays as it was" in caplog.text


async def test_a_stolen_key_is_shut_out_by_editing_a_list(tmp_path: Path) -> None:
    """The holder of the stolen key is shut out after all three steps, open calls included."""
    whole = cluster(tmp_path / "whole")
    stolen = part(tmp_path / "stolen", whole, *NEEDS["operator"])
    ours = Ours()
    async with guarded(ours.methods(), whole) as port, caller(port, stolen, "operator") as thief:
        waiting = asyncio.create_task(thief.call("wait", timeout=DEADLINE))
        await until(lambda: ours.running == 1)
        for _ in range(3):
            rotate(whole, "operator", "2026-11-23")
        with pytest.raises(RemoteError, match="Forbidden"):
            await waiting
        await until(lambda: ours.running == 0)
        async with caller(port, whole, "operator") as client:
            assert await client.call("echo", "x", timeout=DEADLINE) == "x"


async def test_a_removed_key_ends_a_call_whose_peer_sends_nothing(tmp_path: Path) -> None:
    """Nothing comes for minutes: the server has to see by itself that a key is gone."""
    whole = cluster(tmp_path / "whole")
    ours = Ours()
    async with (
        guarded(ours.methods(), whole, heartbeat=300) as port,
        Client("127.0.0.1", port, heartbeat=300, keys=Keyring.load(whole), as_="operator") as thief,
    ):
        waiting = asyncio.create_task(thief.call("wait", timeout=DEADLINE))
        await until(lambda: ours.running == 1)
        (whole / "operators").write_text("# none\n", encoding="utf-8")
        async with asyncio.timeout(1.0):
            with pytest.raises(RemoteError, match="Forbidden: the key of this connection is not"):
                await waiting
        await until(lambda: ours.running == 0, within=1.0)


async def test_a_client_leaves_a_server_whose_key_was_removed(tmp_path: Path) -> None:
    whole = cluster(tmp_path / "whole")
    agent = part(tmp_path / "agent", whole, *NEEDS["agent"])
    async with guarded(Ours().methods(), whole) as port, caller(port, agent) as client:
        assert await client.call("echo", "x", timeout=DEADLINE) == "x"
        masters = agent / "masters"
        other = cluster(tmp_path / "other")
        masters.write_bytes((other / "masters").read_bytes())
        with pytest.raises(LostRemote):
            await client.call("echo", "y", timeout=DEADLINE)


def test_every_kind_is_given_what_it_needs_to_hear_of_new_keys() -> None:
    """Peers that talk to each other have to accept each other's keys."""
    for one, other in (("agent", "master"), ("operator", "master"), ("operator", "agent")):
        assert list_file(other) in NEEDS[one]  # type: ignore[arg-type,index]  # literals
        assert list_file(one) in NEEDS[other]  # type: ignore[arg-type,index]  # literals
