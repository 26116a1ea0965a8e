"""A generator process, as its owner sees it."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict

from bench.generator import Load, Options

_MOST_WAIT = 900.0  # seconds for an answer beyond the time that the command itself may take


class Generator:
    """Sends commands to a generator, see `bench.generator`."""

    def __init__(self, process: asyncio.subprocess.Process, options: Options) -> None:
        self.process = process
        self.options = options

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    async def join(self, *, under_way: int = 64, within: float = 600.0) -> Load:
        """Have every agent acknowledged. Raises `RuntimeError` if some are not."""
        load = await self._command("join", under_way=under_way, within=within)
        if load.left:
            raise RuntimeError(f"{load.left} agents were not acknowledged: {load}")
        return load

    async def loop(
        self, *, under_way: int = 64, seconds: float, count: int = 0, change: bool = False
    ) -> Load:
        """Send in a closed loop."""
        return await self._command(
            "loop", under_way=under_way, seconds=seconds, count=count, change=change
        )

    async def steady(self) -> None:
        """Let the agents report as real ones."""
        await self._command("steady")

    async def mark(self) -> None:
        """Count from now on which agents are acknowledged."""
        await self._command("mark")

    async def until(self, *, within: float) -> Load:
        """Wait until all are acknowledged since `mark`."""
        return await self._command("until", within=within)

    async def report(self) -> Load:
        """Return what came of the keepalives since the last command."""
        return await self._command("report")

    async def _command(self, name: str, **options: object) -> Load:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": name, **options}).encode() + b"\n")
        async with asyncio.timeout(_MOST_WAIT):
            line = await self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the generator ended at {name!r}")
        return Load(**json.loads(line))


@asynccontextmanager
async def generator(options: Options) -> AsyncIterator[Generator]:
    """Run a generator while the block runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.generator", json.dumps(asdict(options))),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Generator(process, options)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
