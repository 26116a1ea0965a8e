"""The example of `kontrol invoke` in a callback, on real pods with a Redis that writes down."""

import json
import os
import sys
from pathlib import Path

from tests.e2e.daemon import Daemon
from tests.e2e.lab import Lab, Tier
from tests.support.etcd import EtcdCluster

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "one_primary.py"
REDIS_CLI = """\
#!/bin/sh
echo "$*" >> "$REDIS_DIR/calls"
[ "$*" != "info replication" ] || printf 'role:slave\\r\\nmaster_repl_offset:%s\\r\\n' "$OFFSET"
"""


ASKED = "info replication"


async def pod(tier: Tier, folder: Path, ident: str, *, offset: int, role: str = "redis") -> str:
    """Start a pod with a Redis; returns its address."""
    address = tier.lab.address()
    (folder / ident).mkdir()
    more = {
        "KONTROL_BIND": address,
        "KONTROL_INVOKE": "insecure",
        "KONTROL_LABELS": json.dumps({"app": tier.app, "role": role}),
        "PATH": f"{folder}:{os.environ['PATH']}",
        "REDIS_DIR": str(folder / ident),
        "OFFSET": str(offset),
    }
    environ = tier.environ("agent", ident, address, more)
    tier.agents[ident] = await tier.lab.start(f"{tier.app}/{ident}", environ)
    return address


def calls(folder: Path, ident: str) -> list[str]:
    """Return what was said to a pod's Redis since this was asked last."""
    path = folder / ident / "calls"
    found = path.read_text("utf-8").splitlines() if path.exists() else []
    path.write_text("", "utf-8")
    return found


async def settled(master: Daemon, pods: int, since: int = 0) -> None:
    """Wait for the first run for so many pods to be acknowledged."""
    run = await master.logged(rf"run (\d+) \(attempt \d+, ensemble\): {pods} pods", since)
    await master.logged(rf"run {run[1]} acknowledged")


async def test_one_primary(tmp_path: Path) -> None:
    (tmp_path / "redis-cli").write_text(REDIS_CLI, "utf-8")
    kontrol = f'#!/bin/sh\nexec {sys.executable} -m kontrol "$@"\n'
    (tmp_path / "kontrol").write_text(kontrol, "utf-8")
    for program in ("redis-cli", "kontrol"):
        (tmp_path / program).chmod(0o755)
    async with EtcdCluster() as etcd, Lab() as lab:
        callback = f"{sys.executable} {EXAMPLE}"
        tier = await lab.tier(etcd.endpoints, masters=0, places=1, CALLBACK=callback)
        master = await tier.master(0, PATH=f"{tmp_path}:{os.environ['PATH']}")
        # The first pod, of number 0, is no Redis.
        await pod(tier, tmp_path, "a", offset=99, role="web")
        await settled(master, 1)
        addresses = {"b": await pod(tier, tmp_path, "b", offset=10)}
        await settled(master, 2)
        assert calls(tmp_path, "b") == [ASKED, "replicaof no one"]
        # The primary stays when others join, and never replicates itself.
        for number, (ident, offset) in enumerate((("c", 20), ("d", 40), ("e", 30)), 3):
            addresses[ident] = await pod(tier, tmp_path, ident, offset=offset)
            await settled(master, number)
        assert set(calls(tmp_path, "b")) == {"replicaof no one"}
        for ident in "cde":
            assert set(calls(tmp_path, ident)) == {f"replicaof {addresses['b']} 6379"}
        # The one that has come furthest follows it, not the first in order.
        since = len(master.lines)
        await tier.agents["b"].kill()
        await settled(master, 4, since)
        assert calls(tmp_path, "d") == [ASKED, "replicaof no one"]
        for ident in "ce":
            assert calls(tmp_path, ident) == [ASKED, f"replicaof {addresses['d']} 6379"]
        assert calls(tmp_path, "a") == []
