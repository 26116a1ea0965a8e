"""Peers that vanish: no packet comes of them any more, and none says so."""

import asyncio
import contextlib
import json
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.rpc.ours import Ours
from tests.rpc.support import DEADLINE, GREETING
from tests.support.programs import find

from kontrol.rpc.client import ANSWERS, Client
from kontrol.rpc.errors import LostRemote
from kontrol.rpc.peers import Peer
from kontrol.rpc.roster import Roster
from kontrol.rpc.server import Server

_PEER = Path(__file__).parent / "peers" / "half_open.py"
_DEAF = 1.0  # seconds, the peer's `DEAF`
_SLOW = 5.0  # seconds that a busy machine may add


@pytest.mark.privileged("ip", "unshare")
@pytest.mark.parametrize("case", ["idle", "sent"])
async def test_both_ends_notice_that_the_network_is_gone(case: str) -> None:
    unshare = find("unshare")
    assert unshare is not None
    process = await asyncio.create_subprocess_exec(
        *(unshare, "--user", "--map-root-user", "--net", sys.executable, str(_PEER), case),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    noticed: dict[str, float] = json.loads(out)
    assert noticed.keys() == {"client", "server"} | ({"sent"} if case == "sent" else set())
    # What was sent is tried for that long. An idle connection is tried after twice that, and again.
    for end, seconds in noticed.items():
        assert 0.9 * _DEAF < seconds < 4 * _DEAF + _SLOW, f"{end}: {noticed}"


async def test_a_connection_that_the_network_does_not_make_is_given_up_in_time() -> None:
    limits = replace(ANSWERS, deaf=0.5)
    loop = asyncio.get_running_loop()
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # the system drops what comes after these
            other = stack.enter_context(socket.socket())
            other.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                other.connect(full.getsockname())
        start = loop.time()
        async with Client("127.0.0.1", full.getsockname()[1], limits=limits) as client:
            with pytest.raises(LostRemote, match="no connection"):
                await client.call("ping", timeout=60)
    assert 0.5 <= loop.time() - start < 0.5 + _SLOW


async def test_a_connection_that_was_given_up_before_it_was_accepted_costs_no_handshake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admitted: list[str] = []
    admit = Roster.admit

    def counted(roster: Roster[Peer], newcomer: Peer) -> list[Peer] | None:
        admitted.append(newcomer.address)
        return admit(roster, newcomer)

    monkeypatch.setattr(Roster, "admit", counted)
    server = Server(Ours().methods())
    port = await server.bind("127.0.0.1", 0)
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", port)) as given_up:
            given_up.send(GREETING)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(server.serve())
        async with Client("127.0.0.1", port) as client:
            assert await client.call("echo", 1, timeout=DEADLINE) == 1
        task.cancel()
    assert admitted == ["127.0.0.1"] * (1 if sys.platform == "linux" else 51)
