"""What the demo does to the ensemble, and how it is shown."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TextIO

from kontrol.demo.daemons import TTL, Daemons, DemoError, Line
from kontrol.store.embedded import embedded_etcd

_MASTER = "kontrol.master"  # the loggers of masters
_LEADS = "^leader, in term"
_ACKNOWLEDGED = r"^run \d+ acknowledged"
_TIMEOUT = 30.0  # seconds for anything to happen
_STYLES = {"step": "1;36", "note": "2", "+": "32", "~": "33", "-": "31", "run": "1", "good": "1;32"}


class Screen:
    """Prints the steps and the callback's output, in colour on a terminal only.

    Times are seconds since it was created.
    """

    def __init__(self, stream: TextIO, *, colour: bool | None = None) -> None:
        self._stream = stream
        self._colour = stream.isatty() if colour is None else colour
        self._start = time.monotonic()
        self._listener: Callable[[], object] = lambda: None
        self.closed = False

    def when_closed(self, listener: Callable[[], object]) -> None:
        """Call `listener` when the output is not read any more, as in `kontrol demo | head`."""
        self._listener = listener

    def step(self, text: str) -> None:
        """Print what is done next."""
        self._line("\n" + self._style("step", f"{self._clock()}  {text}"))

    def note(self, text: str) -> None:
        """Print what happened."""
        self._line(self._style("note", f"         {text}"))

    def good(self, text: str) -> None:
        """Print that the result is as it should be."""
        self._line(self._style("good", f"         {text}"))

    def callback(self, line: str) -> None:
        """Print a line of the callback's output."""
        style = "run" if line.startswith("run ") else line[:1]
        self._line(f"           | {self._style(style, line)}")

    def _clock(self) -> str:
        return f"{time.monotonic() - self._start:6.1f}s"

    def _style(self, style: str, text: str) -> str:
        code = _STYLES.get(style)
        return f"\033[{code}m{text}\033[0m" if self._colour and code else text

    def _line(self, text: str) -> None:
        if self.closed:
            return
        try:
            print(text, file=self._stream, flush=True)
        except BrokenPipeError:
            self.closed = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            self._listener()


class Scenario:
    """The steps of the demo, shown on a screen. `pace` is the pause between them, in seconds."""

    def __init__(self, screen: Screen, pace: float) -> None:
        self._screen = screen
        self._pace = pace
        self._leader = ""

    async def run(self, folder: Path) -> None:
        """Run all steps, with files in `folder`. Raises `DemoError` and `EmbeddedError`."""
        screen = self._screen
        screen.step("a private etcd starts, on a socket of its own")
        async with embedded_etcd() as endpoints:
            daemons = Daemons(folder, ",".join(endpoints), self._logged)
            try:
                await self._steps(daemons)
            except DemoError:
                screen.step("the demo failed; the last lines of the daemons' logs:")
                for line in daemons.last:
                    screen.note(f"{line.daemon}: {line.logger}: {line.message}")
                raise
            finally:
                screen.when_closed(lambda: None)  # from here on nothing may interrupt the end
                screen.step("the end: pods and masters are stopped")
                await daemons.close()
        screen.good("nothing is left running")

    async def _steps(self, daemons: Daemons) -> None:
        screen = self._screen
        screen.step("two masters start, and elect a leader")
        elected = daemons.expect(_MASTER, _LEADS)
        await daemons.master("master-1")
        await daemons.master("master-2")
        await elected.wait(_TIMEOUT)

        screen.step("three pods join: each runs an agent, and gets a number that it keeps")
        for number in (1, 2, 3):
            await self._step(daemons, daemons.agent(f"web-{number}", number))
        await self._pause()

        screen.step("web-2 changes its payload file: every change reaches the callback")
        await self._step(daemons, daemons.payload("web-2", "READY"))
        await self._pause()

        screen.step("web-1 is stopped with SIGTERM: it deregisters, and counts as left")
        await self._step(daemons, daemons.end("web-1"))
        await self._pause()

        screen.step(f"web-3 is killed with SIGKILL: after {TTL} s (KONTROL_TTL) it counts as lost")
        await self._step(daemons, daemons.end("web-3", signal.SIGKILL))
        await self._pause()

        screen.step(f"the leader, {self._leader}, is killed with SIGKILL, and another pod joins")
        elected = daemons.expect(_MASTER, _LEADS)
        await self._step(daemons, self._kill_leader(daemons))
        await elected.wait(_TIMEOUT)
        screen.note("the new leader read numbers, state and pods from etcd, and continued")
        await self._pause()

    async def _kill_leader(self, daemons: Daemons) -> None:
        await daemons.end(self._leader, signal.SIGKILL)
        await daemons.agent("web-4", 4)

    async def _step(self, daemons: Daemons, change: Coroutine[None, None, None]) -> None:
        """Change the ensemble, and wait for the run that this causes."""
        started = daemons.expect("kontrol.callback", "^run ")
        done = daemons.expect(_MASTER, _ACKNOWLEDGED)
        begun = time.monotonic()
        await change
        await started.wait(_TIMEOUT)
        passed = time.monotonic() - begun
        await done.wait(_TIMEOUT)
        self._screen.note(f"the callback ran after {passed:.3f} s")

    async def _pause(self) -> None:
        await asyncio.sleep(self._pace)  # for the reader's eyes; nothing waits for it

    def _logged(self, line: Line) -> None:
        if line.logger == "kontrol.callback":
            self._screen.callback(line.message)
        elif line.logger.startswith(_MASTER) and re.match(_LEADS, line.message):
            self._leader = line.daemon
            self._screen.note(f"{line.daemon} is {line.message}")
