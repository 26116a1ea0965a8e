"""Pods with numbers, and what is done to them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from examples.ensemble import HERE, Ensemble, Member, Screen, ensemble

FOLDER = HERE / "numbers"
SETTINGS = {"TTL": "5", "FOVER": "3", "DAMPER": "0.5", "URGENT": "left,lost,changed"}


class Workers:
    """The pods of an ensemble."""

    def __init__(self, here: Ensemble) -> None:
        self.here = here

    async def join(self, *names: str) -> dict[str, int]:
        """Start pods; returns the numbers of all, once all pods know them."""
        for name in names:
            await self.here.pod(
                name,
                "worker",
                ["automaton", str(FOLDER / "pod.yml"), "-s", "automaton.sock", "-d"],
                KONTROL_PAYLOAD="pod.json",
                KONTROL_PUBLISHED="published.json",
                KONTROL_INVOKE="insecure",  # on loopback; elsewhere, make keys
                KONTROL_INVOKE_ALLOW=str(FOLDER / "allow.json"),
            )
        return await self.numbered()

    async def leave(self, name: str) -> dict[str, int]:
        """End a pod; returns the numbers of the others."""
        await self.here.pods[name].end()
        return await self.numbered()

    async def numbered(self) -> dict[str, int]:
        """Wait until all pods know the numbers of all, and return them."""
        pods = {pod.name: pod for pod in self.here.pods.values() if pod.runs}

        def known() -> bool:
            return all(numbers(pod).keys() == pods.keys() for pod in pods.values())

        await self.here.until(known, f"number of each of {sorted(pods)}")
        return numbers(next(iter(pods.values())))

    async def restart(self, token: str) -> None:
        """Begin to restart them, one after another."""
        await self.here.run("kontrol", "set", f"restart={token}")

    async def restarted(self, count: int) -> None:
        """Wait until so many pods have been restarted, or are in it."""

        def seen() -> bool:
            pods = [pod for pod in self.here.pods.values() if pod.runs]
            return sum(pod.processes[0].find("-> restarting") is not None for pod in pods) >= count

        await self.here.until(seen, f"restart of {count} pods", within=120)

    async def kill_leader(self) -> Member:
        """Kill the leader, and all that it runs; returns it."""
        leader = self.here.leader()
        if leader is None:
            raise RuntimeError(f"no master leads\n{self.here.story()}")
        await leader.kill()
        return leader

    async def settled(self) -> None:
        """Wait until a leader says that none is left to restart."""

        def none() -> bool:
            leader = self.here.leader()
            return leader is not None and leader.find("to restart: none") is not None

        await self.here.until(none, "end of the restarts", within=120)

    def servers(self) -> dict[str, int]:
        """Return how often the server of each pod was started."""
        return {
            pod.name: sum("serves" in line for line in pod.processes[0].lines)
            for pod in self.here.pods.values()
            if pod.runs
        }


def numbers(pod: Member) -> dict[str, int]:
    """Return the numbers that a pod got."""
    try:
        text = (pod.folder / "published.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    found: dict[str, int] = json.loads(text)["documents"].get("numbers", {})
    return found


@asynccontextmanager
async def workers(screen: Screen) -> AsyncIterator[Workers]:
    """Start the masters."""
    callback = str(FOLDER / "callback.py")
    async with ensemble("numbers", callback, masters=2, show=screen.line, **SETTINGS) as here:
        yield Workers(here)
