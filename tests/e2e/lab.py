"""The lab: daemons as real processes on loopback, each with an address of its own.

    async with Lab() as lab:
        tier = await lab.tier(cluster.endpoints, masters=3)
        pod = await tier.agent("a")
        run = await tier.hub.settled({"a"})

Nothing is left of a lab: at its end every process that it started is killed by its id, and a
process that still has the lab's folder for working directory, or its marker in the environment,
fails the test, as does a folder that a callback's input was in. A failure shows every log's end.
"""

import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from tests.e2e.daemon import Daemon, exited
from tests.e2e.hub import Hub
from tests.support.etcd import LAUNCHER, EtcdCluster, free_port

SCRIPT = Path(__file__).with_name("callback_script.py")
CALLBACK = f"{sys.executable} -IS {SCRIPT}"
MASTER = "kontrol.unity3d.com/master"
GONE = 30.0  # seconds in which whatever was killed must be gone
TAIL = 40  # lines of each log in a failure

# What no log may hold, whatever the fault: an unexpected error, or a forgotten task.
_UNSEEMLY = re.compile(
    r"Traceback|was destroyed|never (retrieved|awaited)|Warning: |internal error"
)


class Lab:
    """Starts daemons, and sees that nothing is left of them."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._marker = f"{random.getrandbits(64):016x}"
        # A network of our own on loopback: no other process uses its addresses, on any port.
        self._network = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}"
        self._hosts = iter(range(1, 255))
        self._apps = itertools.count()
        self.folder = Path()
        self.daemons: list[Daemon] = []

    async def __aenter__(self) -> Self:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="e2e-")))
        (self.folder / "tmp").mkdir()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            # A daemon that is killed just before or after its callback cannot remove its folder.
            excused = sum(daemon.process.returncode is None for daemon in self.daemons)
            for daemon in self.daemons:
                await daemon.kill()
            left = self._reap_survivors(await self._survivors())
            litter = [str(path) for path in (self.folder / "tmp").iterdir()]
            if error is None:
                assert not left, f"left running: {left}"
                assert len(litter) <= excused, f"left behind: {litter}"
                for daemon in self.daemons:
                    found = [line for line in daemon.lines if _UNSEEMLY.search(line)]
                    assert not found, f"{daemon.name} said: {found}"
        except AssertionError as failure:
            self._explain(failure)
            raise
        finally:
            if error is not None:
                self._explain(error)
            await self._stack.aclose()

    def _explain(self, error: BaseException) -> None:
        for daemon in self.daemons:
            tail = "\n  ".join(daemon.lines[-TAIL:])
            error.add_note(f"{daemon.name} (status {daemon.process.returncode}):\n  {tail}")

    def address(self) -> str:
        """Return an address that was not used before."""
        return f"{self._network}.{next(self._hosts)}"

    async def tier(
        self, etcd: Sequence[str], *, masters: int = 1, places: int = 0, **options: str
    ) -> "Tier":
        """Return a tier, with its hub, its first masters, and addresses for `places` of them.

        `options` are the masters' variables, without the `KONTROL_`.
        """
        app = f"app{next(self._apps)}"
        hub = await self._stack.enter_async_context(Hub(self.folder / f"{app}.hub"))
        tier = Tier(self, app, hub, etcd=etcd, options=options, places=places or masters)
        await asyncio.gather(*(tier.master(i) for i in range(masters)))
        return tier

    async def start(
        self,
        name: str,
        environ: Mapping[str, str],
        *,
        hub: Hub | None = None,
        command: Sequence[str] = ("-m", "kontrol"),
        prefix: Sequence[str] = (),
    ) -> Daemon:
        """Start a process of the product with this environment and little else."""
        process = await asyncio.create_subprocess_exec(
            *prefix,
            sys.executable,
            "-ISc",
            LAUNCHER,
            sys.executable,
            *command,
            env={
                "PATH": os.environ["PATH"],
                "TMPDIR": str(self.folder / "tmp"),
                "XDG_RUNTIME_DIR": str(self.folder),
                "E2E_MARK": self._marker,
                **environ,
            },
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            limit=1 << 22,
        )
        daemon = Daemon(name, process, hub)
        self.daemons.append(daemon)
        return daemon

    def processes(self) -> dict[int, str]:
        """Return the processes of this lab that live, by id, with their command lines."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):  # it ended meanwhile
                    environ = (entry / "environ").read_bytes()
                    here = (entry / "cwd").readlink().is_relative_to(self.folder)
                    if here or f"E2E_MARK={self._marker}".encode() in environ:
                        words = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                        found[int(entry.name)] = words.decode("utf-8", "replace")[:200]
        return found

    async def _survivors(self) -> dict[int, str]:
        """Return those that do not end by themselves."""
        left = self.processes()
        for pid in left:
            await exited(pid, GONE)
        return self.processes()

    @staticmethod
    def _reap_survivors(left: dict[int, str]) -> dict[int, str]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left


class Tier:
    """Masters that share an app and an etcd, the agents that report to them, and their hub."""

    def __init__(
        self,
        lab: Lab,
        app: str,
        hub: Hub,
        *,
        etcd: Sequence[str],
        options: Mapping[str, str],
        places: int,
    ) -> None:
        self.lab = lab
        self.app = app
        self.hub = hub
        self.etcd = list(etcd)
        self.port = free_port()
        self.masters: list[Daemon] = []
        self.agents: dict[str, Daemon] = {}
        self.addresses = [lab.address() for _ in range(places)]
        self.options = {
            "TTL": "5",
            "FOVER": "3",
            "DAMPER": "0.2",
            "CALLBACK": CALLBACK,
            **options,
        }

    @property
    def name(self) -> str:
        """What an agent's annotation says of this tier."""
        return f"{'|'.join(self.addresses)}:{self.port}"

    def environ(
        self, mode: str, ident: str, address: str, more: Mapping[str, str]
    ) -> dict[str, str]:
        """Return the environment of a daemon; a variable that is empty in `more` is not set."""
        environ = {
            "KONTROL_MODE": mode,
            "KONTROL_ID": ident,
            "KONTROL_IP": address,
            "KONTROL_PORT": str(self.port),
            "KONTROL_HTTP_PORT": "0",
            "KONTROL_LABELS": json.dumps({"app": self.app, "role": "test"}),
            "KONTROL_ANNOTATIONS": json.dumps({MASTER: self.name}),
            "KONTROL_CONTROL": str(self.control(ident)),
        }
        if "master" in mode:
            environ |= {
                "KONTROL_BIND": address,
                "KONTROL_ETCD": ",".join(self.etcd),
                "E2E_SOCKET": str(self.hub.path),
                **{f"KONTROL_{name}": value for name, value in self.options.items()},
            }
        return {name: value for name, value in (environ | dict(more)).items() if value}

    def control(self, ident: str) -> Path:
        """Return the path of a pod's control socket."""
        return self.lab.folder / f"{self.app}.{ident}.sock"

    async def master(self, i: int, *, mode: str = "master", **more: str) -> Daemon:
        """Start master `i`, from 0, and wait until it listens."""
        environ = self.environ(mode, f"m{i}", self.addresses[i], more)
        daemon = await self.lab.start(f"{self.app}/m{i}", environ, hub=self.hub)
        self.masters[i : i + 1] = [daemon]
        await daemon.logged("master on port")
        return daemon

    async def agent(self, ident: str, **more: str) -> Daemon:
        """Start an agent."""
        environ = self.environ("agent", ident, self.lab.address(), more)
        self.agents[ident] = await self.lab.start(f"{self.app}/{ident}", environ)
        return self.agents[ident]

    async def leader(self, term: int) -> int:
        """Return which master leads in `term`."""
        for i, master in enumerate(self.masters):
            if master.find(rf"leader, in term {term}\b"):
                return i
        raise AssertionError(f"no master says that it leads in term {term}")


Scenario: TypeAlias = Callable[[Lab, EtcdCluster], Awaitable[None]]
"""What a test does in a lab of its own, with an etcd of its own."""
