"""Peers that vanish: no packet comes of them any more, and none says so."""

import asyncio
import json
import sys
from pathlib import Path

import pytest
from tests.support.programs import find

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
