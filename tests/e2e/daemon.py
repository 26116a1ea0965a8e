"""A process of the product under test, with its log as it comes."""

import asyncio
import os
import re
import select
import signal
from pathlib import Path

from tests.e2e.hub import DEADLINE, Hub

_ACKNOWLEDGED = re.compile(r"run (\d+) acknowledged")


class Daemon:
    """One process of the product, and its log, line by line."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, hub: Hub | None) -> None:
        self.name = name
        self.process = process
        self.lines: list[str] = []
        self.killed = False
        self._hub = hub
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read(), name=f"log of {name}")

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for raw in self.process.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            self.lines.append(line)
            if self._hub is not None and (found := _ACKNOWLEDGED.search(line)):
                self._hub.hear(int(found[1]))
            async with self._news:
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def mark(self) -> int:
        """Where the log is now, to wait for what comes after."""
        return len(self.lines)

    def find(self, pattern: str, since: int = 0) -> re.Match[str] | None:
        """Return the first line from `since` on that matches."""
        found = (re.search(pattern, line) for line in self.lines[since:])
        return next((match for match in found if match), None)

    async def logged(
        self, pattern: str, since: int = 0, *, within: float = DEADLINE
    ) -> re.Match[str]:
        """Wait for a line of the log that matches."""
        try:
            async with asyncio.timeout(within), self._news:
                while (match := self.find(pattern, since)) is None:
                    if self._reading.done():
                        raise AssertionError(f"{self.name} ended without saying {pattern!r}")
                    await self._news.wait()
                return match
        except TimeoutError:
            raise AssertionError(
                f"{self.name} did not say {pattern!r} within {within:g} s"
            ) from None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def ended(self, within: float = DEADLINE) -> int:
        """Wait for its end, and for the last of its log; returns the exit status."""
        try:
            async with asyncio.timeout(within):
                status = await self.process.wait()
                await asyncio.wait([self._reading])
                return status
        except TimeoutError:
            raise AssertionError(f"{self.name} did not end within {within:g} s") from None

    async def end(self, within: float = DEADLINE) -> int:
        """SIGTERM it, and return its exit status."""
        self.signal(signal.SIGTERM)
        return await self.ended(within)

    async def kill(self) -> None:
        """SIGKILL it, stopped or not, and wait for its end."""
        self.killed = True
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        # A callback that outlives its leader for a moment holds no end of this pipe; wait for all.
        await asyncio.wait([self._reading])

    def rss(self) -> int:
        """Return its resident memory in bytes."""
        pages = Path(f"/proc/{self.pid}/statm").read_text("utf-8").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


async def exited(pid: int, within: float) -> bool:
    """Wait for the end of a process that is not our child; False if it lives on."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    loop.add_reader(pidfd, end.set)
    try:
        async with asyncio.timeout(within):
            await end.wait()
        return True
    except TimeoutError:
        return bool(select.select([pidfd], [], [], 0)[0])
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
