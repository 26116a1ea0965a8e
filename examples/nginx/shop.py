"""A balancer, its backends, and what requests meet while backends come and go."""

import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from examples.ensemble import HERE, Ensemble, Member, Screen, ensemble
from examples.nginx.load import Done, Requests, load

FOLDER = HERE / "nginx"
SETTINGS = {"TTL": "3", "FOVER": "3", "DAMPER": "0.5", "URGENT": "left,lost,changed"}
SLOW = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Result:
    """What happened, the seconds until nginx followed, and the requests from before to after."""

    what: str
    followed: float
    requests: list[Done]

    @property
    def failed(self) -> list[str]:
        """How requests failed, one by one."""
        return [each.wrong for each in self.requests if each.wrong]

    @property
    def slow(self) -> int:
        """How many took longer than `SLOW`."""
        return sum(each.took > SLOW for each in self.requests)

    @property
    def longest(self) -> float:
        """Seconds."""
        return max(each.took for each in self.requests)

    def __str__(self) -> str:
        return (
            f"{self.what:8} {self.followed:8.2f} s {len(self.requests):10} {len(self.failed):8}"
            f" {self.slow:8} {self.longest:8.2f} s"
        )


HEAD = "what     followed after  requests   failed  over 1 s   longest"


class Shop:
    """A balancer, its backends, and requests for them."""

    def __init__(self, here: Ensemble, balancer: Member, requests: Requests) -> None:
        self.here = here
        self.balancer = balancer
        self.requests = requests

    def serve(self) -> set[str]:
        """Return the addresses of the list that nginx uses."""
        try:
            text = (self.balancer.folder / "pod.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return set()
        return set(json.loads(text)["serve"])

    async def join(self, name: str) -> Result:
        """Start a backend."""
        return await self._measure("join", name, backend(self.here, name), joins=True)

    async def leave(self, name: str) -> Result:
        """Have a backend end once nginx does not use it: `automaton ctl` is its preStop hook."""
        pod = self.here.pods[name]
        hook = self.here.run("automaton", "ctl", "automaton.sock", "GOTO", "stopping", pod=pod)
        result = await self._measure("leave", name, hook)
        if any(statuses := await pod.ended()):
            raise RuntimeError(f"{name} ended with {statuses}")
        return result

    async def kill(self, name: str) -> Result:
        """Kill all that runs in a pod."""
        return await self._measure("kill", name, self.here.pods[name].kill())

    async def stop(self, name: str) -> Result:
        """Stop all that runs in a pod, as if its host were frozen."""
        return await self._measure("SIGSTOP", name, self.here.pods[name].send(signal.SIGSTOP))

    async def resume(self, name: str) -> Result:
        """Have it go on."""
        signalled = self.here.pods[name].send(signal.SIGCONT)
        return await self._measure("SIGCONT", name, signalled, joins=True)

    async def _measure(
        self, what: str, name: str, change: Awaitable[object], *, joins: bool = False
    ) -> Result:
        """Change something, and wait until nginx follows, and for a while more."""
        await self.requests.more()
        since, begun = len(self.requests.done), time.monotonic()
        await change
        address = self.here.pods[name].address
        await self.requests.until(lambda: (address in self.serve()) is joins, f"{what} of {name}")
        followed = time.monotonic() - begun
        await self.requests.more()
        return Result(what, followed, self.requests.done[since:])


async def backend(here: Ensemble, name: str) -> Member:
    """Start a backend."""
    return await here.pod(
        name,
        "backend",
        ["automaton", str(FOLDER / "backend.yml"), "-s", "automaton.sock", "-d"],
        KONTROL_PAYLOAD="pod.json",
        KONTROL_PUBLISHED="published.json",
        KONTROL_ON_PUBLISHED=str(FOLDER / "drained.py"),
    )


@asynccontextmanager
async def shop(
    screen: Screen, *, backends: int = 3, clients: int = 16, method: str = "GET"
) -> AsyncIterator[Shop]:
    """Make an ensemble whose nginx serves requests."""
    callback = str(FOLDER / "callback.py")
    async with ensemble("nginx", callback, masters=2, show=screen.line, **SETTINGS) as here:
        balancer = await here.pod(
            "balancer",
            "balancer",
            [str(FOLDER / "balancer")],
            KONTROL_PAYLOAD="pod.json",
            KONTROL_PUBLISHED="published.json",
            KONTROL_ON_PUBLISHED=str(FOLDER / "follow.py"),
        )
        for number in range(1, backends + 1):
            await backend(here, f"web-{number}")
        made = Shop(here, balancer, Requests(balancer.address, here.web_port, method))
        await here.until(lambda: len(made.serve()) == backends, "list of all backends")
        async with load(made.requests, clients):
            yield made
