"""What the callback publishes, in the files of pods: real processes, and a real etcd."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.lab import Lab, Tier
from tests.support.etcd import EtcdCluster

from kontrol.filewatch import Watch

DEADLINE = 40.0
SCRIPT = """#!/bin/sh
{python} -m kontrol publish run "$RUN" || exit 1
{python} -m kontrol publish pods --file "$PODS_FILE" || exit 1
"""


def publishing(lab: Lab, script: str = SCRIPT) -> str:
    """Write a callback that publishes, and return the command."""
    path = lab.folder / "publishing"
    path.write_text(script.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


def ids(document: dict[str, Any]) -> set[str]:
    return {pod["id"] for pod in document["documents"].get("pods", ())}


async def seen(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return what the file has, once it is as wanted; every state that was seen is in order."""
    version = 0
    async with asyncio.timeout(DEADLINE):
        with Watch(f"{path}", interval=0.05) as watch:
            while True:
                watch.arm([path])
                if (found := content(path)) is not None:
                    assert set(found) == {"version", "documents"}
                    assert found["version"] >= version
                    version = found["version"]
                    if wanted(found):
                        return found
                await watch.changed()


def content(path: Path) -> dict[str, Any] | None:
    return dict(json.loads(path.read_bytes())) if path.exists() else None


async def pod(tier: Tier, ident: str, **more: str) -> Path:
    """Start an agent that keeps what is published, and return its file."""
    path = tier.lab.folder / f"{ident}.json"
    await tier.agent(ident, KONTROL_PUBLISHED=str(path), **more)
    return path


async def test_pods_have_what_the_leader_published_over_its_death_and_their_absence() -> None:
    async with EtcdCluster() as etcd, Lab() as lab:
        tier = await lab.tier(etcd.endpoints, masters=3, CALLBACK=publishing(lab))
        told = lab.folder / "told"
        hook = (
            f"""sh -c 'echo "$PUBLISHED_VERSION" >> {told}; cp "$KONTROL_PUBLISHED" {told}.json'"""
        )
        files = {
            "a": await pod(tier, "a", KONTROL_ON_PUBLISHED=hook),
            "b": await pod(tier, "b"),
            "c": await pod(tier, "c"),
        }
        first = [await seen(path, lambda it: ids(it) == set("abc")) for path in files.values()]
        assert first[0] == first[1] == first[2]
        copied = await seen(Path(f"{told}.json"), lambda it: it == first[0])
        assert copied == first[0]

        os.kill(tier.agents["c"].process.pid, signal.SIGSTOP)
        leader = await leading(tier)
        await tier.masters[leader].kill()
        files["d"] = await pod(tier, "d")
        after = [await seen(files[name], lambda it: {"a", "b", "d"} <= ids(it)) for name in "abd"]
        assert all(it["version"] > first[0]["version"] for it in after)
        os.kill(tier.agents["c"].process.pid, signal.SIGCONT)
        last = [await seen(path, lambda it: ids(it) == set("abcd")) for path in files.values()]
        assert len({json.dumps(it) for it in last}) == 1
        numbers = [int(line) for line in told.read_text().split()]
        assert numbers == sorted(set(numbers))


async def leading(tier: Tier) -> int:
    """Return which master leads, by its log."""
    for i, master in enumerate(tier.masters):
        if any("leader, in term" in line for line in master.lines):
            return i
    raise AssertionError("no master leads")
