"""The demo's processes: real daemons, each with its own environment, followed by their logs."""

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kontrol.ensemble.tiers import Tier
from kontrol_common.files import replace_file

TTL = 4  # seconds
_END = 8.0  # seconds from SIGTERM to SIGKILL


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a daemon's log."""

    daemon: str
    logger: str
    message: str


class ExpectedLine:
    """A line of the log that is waited for, from the creation of this object on."""

    def __init__(self, logger: str, pattern: str) -> None:
        self.line: asyncio.Future[Line] = asyncio.get_running_loop().create_future()
        self._logger = logger
        self._pattern = re.compile(pattern)

    def see(self, line: Line) -> None:
        """Compare a line of a log."""
        matches = line.logger.startswith(self._logger) and self._pattern.search(line.message)
        if matches and not self.line.done():
            self.line.set_result(line)

    async def wait(self, seconds: float) -> Line:
        """Wait for the line. Raises `DemoError` after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                return await self.line
        except TimeoutError:
            raise DemoError(
                f"no line of the log matched {self._pattern.pattern!r} within {seconds:g} s"
            ) from None


class Daemons:
    """Starts and ends daemons. `logged` gets every line of their logs; `last` has the last ones."""

    def __init__(self, folder: Path, etcd: str, logged: Callable[[Line], None]) -> None:
        self.last: deque[Line] = deque(maxlen=20)
        self._folder = folder
        self._etcd = etcd
        self._logged = logged
        self._processes: dict[str, Process] = {}
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._expected: list[ExpectedLine] = []
        self._hosts = _loopbacks()
        self._port = _free_port(self._hosts)

    async def master(self, name: str) -> None:
        """Start a master on the tier's next address."""
        host = self._hosts[len(self._processes)]
        await self._start(
            name,
            KONTROL_MODE="master",
            KONTROL_PORT=str(self._port),
            KONTROL_BIND=host,
            KONTROL_IP=host,
            KONTROL_CALLBACK=shlex.join([sys.executable, "-m", "kontrol.demo.callback"]),
            KONTROL_LABELS=json.dumps({"app": "demo", "role": "master"}),
        )

    async def agent(self, name: str, number: int) -> None:
        """Start an agent, with a payload file, that reports to the masters."""
        await self.payload(name, "STARTING")
        tier = Tier("|".join(self._hosts), self._port)
        await self._start(
            name,
            KONTROL_MODE="agent",
            KONTROL_IP=f"10.0.0.{number}",  # only a name: no connection is made to it
            KONTROL_PAYLOAD=str(self._folder / f"{name}.json"),
            KONTROL_LABELS=json.dumps({"app": "demo", "role": "web"}),
            KONTROL_ANNOTATIONS=json.dumps({"kontrol.unity3d.com/master": str(tier)}),
        )

    async def payload(self, name: str, state: str) -> None:
        """Replace an agent's payload file, atomically."""
        replace_file(self._folder / f"{name}.json", json.dumps({"state": state}).encode())

    def expect(self, logger: str, pattern: str) -> ExpectedLine:
        """Watch, from now on, for a line that matches a pattern, of a logger or one below it."""
        self._expected = [each for each in self._expected if not each.line.done()]
        self._expected.append(ExpectedLine(logger, pattern))
        return self._expected[-1]

    async def end(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """Signal a daemon, wait until it has ended, and read the rest of its log."""
        process = self._processes[name]
        if process.returncode is None:
            process.send_signal(how)
        waiting = asyncio.create_task(process.wait())
        ended, _ = await asyncio.wait({waiting}, timeout=_END)
        if not ended:
            process.kill()
        await waiting
        await self._reading[name]

    async def close(self) -> None:
        """End all daemons, in reverse order: pods before masters."""
        for name in reversed(self._processes):
            await self.end(name)

    async def _start(self, name: str, **settings: str) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("KONTROL_")}
        environment = inherited | {
            "KONTROL_ID": name,
            "KONTROL_ETCD": self._etcd,
            "KONTROL_HTTP_PORT": "0",
            "KONTROL_LOG": "json",
            "KONTROL_TTL": str(TTL),
            "KONTROL_DAMPER": "0",
            "KONTROL_FOVER": "3",
            "KONTROL_CONTROL": str(self._folder / f"{name}.sock"),
            **settings,
        }
        # A session of its own, so that Ctrl-C reaches only the demo, which then ends them in order.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "kontrol", env=environment, stdout=PIPE, start_new_session=True
        )
        self._processes[name] = process
        self._reading[name] = asyncio.create_task(self._read(name, process))

    async def _read(self, name: str, process: Process) -> None:
        assert process.stdout is not None, "its standard output is a pipe"  # noqa: S101
        async for raw in process.stdout:
            try:
                event = json.loads(raw)
            except ValueError:
                event = {"logger": "", "message": raw.decode("utf-8", "replace").rstrip()}
            line = Line(name, event["logger"], event["message"])
            self.last.append(line)
            self._logged(line)
            for each in self._expected:
                each.see(line)


def _loopbacks() -> list[str]:
    """Return two addresses of this machine: on Linux all of 127/8 exists, elsewhere use ::1."""
    for second in ("127.0.0.2", "::1"):
        family = socket.AF_INET6 if ":" in second else socket.AF_INET
        try:
            with socket.socket(family) as probe:
                probe.bind((second, 0))
        except OSError:
            continue
        return ["127.0.0.1", second]
    raise DemoError(
        "the second master needs an address: this machine has neither 127.0.0.2 nor ::1"
    )


def _free_port(hosts: list[str]) -> int:
    """Return a port that is free on all of `hosts`."""
    while True:
        with socket.socket() as probe:
            probe.bind((hosts[0], 0))
            port = int(probe.getsockname()[1])
        try:
            for host in hosts:
                with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                    probe.bind((host, port))
        except OSError:
            continue
        return port
