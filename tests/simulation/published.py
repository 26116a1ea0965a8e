"""What callbacks publish, and the files of pods, in memory. Drawn from streams of its own."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random

from tests.simulation.history import Kept, Published, Publishing
from tests.simulation.world import World

from kontrol.agent.published import PublishedFile
from kontrol.master.callback import RunRequest
from kontrol.master.records.published import NotPublished


class Disk:
    """The file of one pod, which outlives its agent's processes."""

    def __init__(self) -> None:
        self.content: bytes | None = None


class SimFile(PublishedFile):
    """The file as an agent's process on `host` has it; now and then the disk is full."""

    def __init__(self, world: World, host: str, node: str, tier: str, disk: Disk) -> None:
        self._disk = disk
        self._world = world
        self._host = host
        self._chance = Random(f"disk {world.schedule.seed} {node}")
        super().__init__(Path("/published.json"), (tier,), pod=host, uniform=self._chance.random)

    def _write(self, content: bytes) -> None:
        if not self._world.settling and self._chance.random() < 0.1:
            raise OSError(28, "No space left on device")
        self._disk.content = content
        self._world.record(Kept(self._world.loop.world, self._host, content))

    def _content(self) -> bytes:
        if self._disk.content is None:
            raise FileNotFoundError
        return self._disk.content


class SimPublisher:
    """Has the callbacks of one master's process publish, as `kontrol publish` does."""

    def __init__(self, world: World, host: str, node: str) -> None:
        self._world = world
        self._host = host
        self._node = node
        self._tasks: set[asyncio.Task[None]] = set()
        self._rng = Random(f"publishing {world.schedule.seed} {node}")

    def begin(self, request: RunRequest, length: float, alive: Callable[[], bool]) -> None:
        """Publish now and then within the `length` of a run, while its process is `alive`."""
        world, rng = self._world, self._rng
        if not world.schedule.publishes or request.publish is None:
            return
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            key, value = rng.choice("ab"), rng.randint(0, 4)
            world.loop.call_later(
                rng.choice((rng.uniform(0, length), max(0.0, length - 0.003))),
                partial(self._ask, request, key, value, alive),
                context=world.loop.context(""),
            )

    def _ask(self, request: RunRequest, key: str, value: int, alive: Callable[[], bool]) -> None:
        if alive():
            self._world.record(Publishing(self._world.loop.world, self._host, request.run, key))
            task = self._world.loop.spawn(self._node, self._publish(request, key, value))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _publish(self, request: RunRequest, key: str, value: int) -> None:
        assert request.publish is not None
        version: int | None = None
        with suppress(NotPublished):
            version = await request.publish(key, value)
        now = self._world.loop.world
        self._world.record(Published(now, self._host, request.run, key, value, version))
