"""A model of the hooks of a pod: commands that an agent has its guard run. They take any time."""

import asyncio
from collections.abc import Sequence
from random import Random

from tests.simulation.history import Hook
from tests.simulation.world import World

from kontrol.agent.hooks import HookRunner
from kontrol.agent.silence import SilenceHooks
from kontrol.process.command import Command, Outcome
from kontrol.process.run import OnChunk, OnStderr

_LENGTHS: Sequence[float] = (0.01, 0.1, 0.3, 0.5, 2.0, 1000.0)  # seconds


class SimHooks:
    """Runs the hooks of one agent's process, on `host`; a model of `kontrol.process`."""

    def __init__(self, world: World, host: str, node: str) -> None:
        self._world = world
        self._host = host
        self._rng = Random(f"hooks {world.schedule.seed} {node}")

    def hooks(self) -> SilenceHooks:
        """Return the hooks, for the agent."""
        runner = HookRunner(self.run, environ={}, secrets=(), uniform=self._rng.random)
        return SilenceHooks(runner, silent=("silent",), heard=("heard",))

    async def run(
        self,
        command: Command,
        *,
        deadline: float | None,
        on_stderr: OnStderr | None = None,
        on_stdout: OnChunk | None = None,
    ) -> Outcome:
        """Run one, or kill it in time; a part of them fails."""
        del deadline, on_stderr, on_stdout
        name, rng = command.argv[0], self._rng
        await asyncio.sleep(rng.uniform(0.002, 0.03))
        length, status = rng.choice(_LENGTHS), int(rng.random() < 0.3)
        assert command.timeout is not None
        stubborn = rng.random() < 0.5  # it ignores SIGTERM
        most = command.timeout + (command.grace if stubborn else 0.01)
        self._say(name, "begins")
        try:
            await asyncio.sleep(min(length, most))
        except asyncio.CancelledError:
            self._say(name, "ended for another")
            raise
        if length > most:
            self._say(name, "killed")
            return Outcome("timeout", None, 9, b"", b"", most, "timed out")
        self._say(name, "failed" if status else "done")
        return Outcome("exited", status, None, b"", b"", length, f"exit status {status}")

    def _say(self, name: str, what: str) -> None:
        self._world.record(Hook(self._world.loop.world, self._host, name, what))
