"""The demonstration's story: what is done to the ensemble, and what Kontrol makes of it."""

import asyncio
import signal
import time
from collections.abc import Coroutine
from pathlib import Path

from kontrol.demo.screen import Screen
from kontrol.demo.stage import TTL, Line, Stage, StageError
from kontrol.store.embedded import embedded_etcd

_LEADERSHIP = "kontrol.master.leader.leader"  # the logger that tells who leads
_PATIENCE = 30.0  # seconds for anything to happen


class Story:
    """Plays on a stage, and is told on a screen. `pace` is the pause between acts, in seconds."""

    def __init__(self, screen: Screen, pace: float) -> None:
        self._screen = screen
        self._pace = pace
        self._leader = ""

    async def play(self, folder: Path) -> None:
        """Play from beginning to end. Raises `StageError` and `EmbeddedError`."""
        say = self._screen
        say.step("a private etcd starts, on a socket of its own")
        async with embedded_etcd() as endpoints:
            stage = Stage(folder, ",".join(endpoints), self._heard)
            try:
                await self._acts(stage)
            except StageError:
                say.step("something went wrong; the last that the daemons said:")
                for line in stage.last:
                    say.note(f"{line.daemon}: {line.logger}: {line.message}")
                raise
            finally:
                say.when_left(lambda: None)  # it ends as it is, and must not be cut short
                say.step("the end: pods and masters are told to go")
                await stage.close()
        say.good("nothing is left running")

    async def _acts(self, stage: Stage) -> None:
        say = self._screen
        say.step("two masters start, and elect a leader")
        leading = stage.cue(_LEADERSHIP, "^leader, in term")
        await stage.master("master-1")
        await stage.master("master-2")
        await leading.come(_PATIENCE)

        say.step("three pods join: each runs an agent, and is given a number that it keeps")
        for number in (1, 2, 3):
            await self._act(stage, stage.agent(f"web-{number}", number))
        await self._pause()

        say.step("web-2 changes its payload file: every change reaches the callback")
        await self._act(stage, stage.payload("web-2", "READY"))
        await self._pause()

        say.step("web-1 is told to go, with SIGTERM: it deregisters, and counts as left")
        await self._act(stage, stage.end("web-1"))
        await self._pause()

        say.step(f"web-3 is killed, with SIGKILL: its {TTL} s run out, and it counts as lost")
        await self._act(stage, stage.end("web-3", signal.SIGKILL))
        await self._pause()

        say.step(f"the leader, {self._leader}, is killed with SIGKILL, and a pod joins meanwhile")
        leading = stage.cue(_LEADERSHIP, "^leader, in term")
        await self._act(stage, self._kill_leader(stage))
        await leading.come(_PATIENCE)
        say.note("its successor got number, state and list from etcd, and went on from there")
        await self._pause()

    async def _kill_leader(self, stage: Stage) -> None:
        await stage.end(self._leader, signal.SIGKILL)
        await stage.agent("web-4", 4)

    async def _act(self, stage: Stage, act: Coroutine[None, None, None]) -> None:
        """Do something to the ensemble, and wait for the run that it causes."""
        spoke = stage.cue("kontrol.callback", "^run ")
        done = stage.cue("kontrol.master.leader.execution", "acknowledged")
        begun = time.monotonic()
        await act
        await spoke.come(_PATIENCE)
        passed = time.monotonic() - begun
        await done.come(_PATIENCE)
        self._screen.note(f"the callback spoke {passed:.3f} s after that began")

    async def _pause(self) -> None:
        await asyncio.sleep(self._pace)  # for the reader's eyes; nothing waits for it

    def _heard(self, line: Line) -> None:
        if line.logger == "kontrol.callback":
            self._screen.callback(line.message)
        elif line.logger == _LEADERSHIP and line.message.startswith("leader,"):
            self._leader = line.daemon
            self._screen.note(f"{line.daemon} is {line.message}")
