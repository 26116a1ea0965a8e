"""Containers on a bridge of their own, each with its own address; nothing of them is left.

async with Containers(image) as containers:
    etcd = await containers.etcd()
    agent = await containers.run("agent-1", env={...})
    await agent.log.logged("reporting to")
"""

import asyncio
import contextlib
import json
import random
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.daemon import Daemon
from tests.image.engine import PODMAN, podman
from tests.support.etcd import find

TAIL = 40  # lines of each log in a failure
GRACE = 10  # seconds that docker and podman give by default
ALONE = {"KONTROL_CLOUD": "none"}  # this machine may well be in one
ROOMY = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")


class Container:
    """One container, and what it prints."""

    def __init__(self, name: str, full: str, address: str, log: Daemon) -> None:
        self.name = name
        self.full = full
        self.address = address
        self.log = log
        self.started = time.monotonic()

    async def exec(self, *words: str, user: str | None = None) -> str:
        """Run a command in it; returns its standard output."""
        options = [f"--user={user}"] if user else []
        return await podman("exec", *options, self.full, *words)

    async def processes(self) -> list[int]:
        """Return the ids, on this machine, of all its processes."""
        first = await podman("inspect", "--format={{.State.Pid}}", self.full)
        return _namesakes(int(first))

    async def stop(self, grace: int = GRACE) -> int:
        """SIGTERM it, SIGKILL it after `grace` seconds; returns its exit status."""
        await podman("stop", f"--time={grace}", self.full)
        return await self.log.ended()

    async def kill(self) -> None:
        """SIGKILL it: nothing in it can deregister."""
        await podman("kill", "--signal=KILL", self.full)
        await self.log.ended()


def _namesakes(pid: int) -> list[int]:
    """Return the processes in the PID namespace of this one."""
    space = Path(f"/proc/{pid}/ns/pid").readlink()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # no process, or it ended meanwhile
            if (entry / "ns/pid").readlink() == space:
                found.append(int(entry.name))
    return sorted(found)


class Containers:
    """Starts containers of one image, and sees that they go."""

    def __init__(self, image: str) -> None:
        self.image = image
        self.mark = f"kontrol-{random.getrandbits(32):08x}"
        self.all: list[Container] = []

    async def __aenter__(self) -> Self:
        await podman("network", "create", self.mark)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            for container in self.all:
                tail = "\n  ".join(line[:300] for line in container.log.lines[-TAIL:])
                error.add_note(
                    f"{container.name} (status {container.log.process.returncode}):\n  {tail}"
                )
        try:
            ids = await podman("ps", "--all", "--quiet", f"--filter=name=^{self.mark}-")
            if ids:
                await podman("rm", "--force", "--time=0", "--volumes", *ids.split())
            for container in self.all:
                await container.log.ended()
        finally:
            await podman("network", "rm", "--force", self.mark)

    async def run(
        self,
        name: str,
        *command: str,
        image: str | None = None,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> Container:
        """Start a container with this host name; returns when it has its address."""
        full = f"{self.mark}-{name}"
        await podman(
            "create",
            f"--name={full}",
            f"--hostname={name}",
            f"--network={self.mark}",
            *ROOMY,
            *(f"--env={key}={value}" for key, value in (ALONE | dict(env or {})).items()),
            "--no-healthcheck",  # podman needs systemd for those
            *options,
            image or self.image,
            *command,
        )
        # Its network is there before its first process is, so that the address can be asked for.
        await podman("init", full)
        found: list[dict[str, Any]] = json.loads(await podman("inspect", full))
        address = str(found[0]["NetworkSettings"]["Networks"][self.mark]["IPAddress"])
        process = await asyncio.create_subprocess_exec(
            *PODMAN,
            "start",
            "--attach",
            full,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            limit=1 << 22,
        )
        container = Container(name, full, address, Daemon(name, process, None))
        self.all.append(container)
        return container

    async def etcd(self) -> Container:
        """Start etcd; returns when it serves. A binary of ours: no registry has to be asked."""
        binary = find("etcd")
        assert binary, "no etcd found: install the test extra, or put etcd on PATH"
        container = await self.run(
            "etcd",
            "--data-dir=/tmp/etcd",
            "--listen-client-urls=http://0.0.0.0:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--unsafe-no-fsync",
            options=(f"--volume={binary}:/etcd:ro", "--entrypoint=/etcd"),
        )
        await container.log.logged("serving (insecure )?client (requests|traffic)")
        return container

    async def disconnect(self, container: Container) -> None:
        """Cut it off the network."""
        await podman("network", "disconnect", self.mark, container.full)

    async def connect(self, container: Container) -> None:
        """Give it its address back."""
        await podman("network", "connect", f"--ip={container.address}", self.mark, container.full)
