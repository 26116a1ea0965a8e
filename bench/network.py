"""Pods in network namespaces of their own, behind a bridge: each has a link that can go down.

Needs root. The bridge's addresses are those of what is no pod: masters, Sentinels.
"""

import asyncio
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Network:
    """A bridge with addresses of this machine, and namespaces that have one address each."""

    name: str
    hosts: tuple[str, ...]
    pods: tuple["Namespace", ...]


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace; processes are started in it with `prefix` before their command."""

    name: str
    address: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """What runs a command in it."""
        return ("ip", "netns", "exec", self.name)

    async def link(self, state: str) -> None:
        """Set its link `up` or `down`. When it is down, packets are lost without an error."""
        await ip("link", "set", self.name, state)

    async def reach(self, addresses: Iterable[str], *, reachable: bool) -> None:
        """Let packets to some addresses through, or drop them: it still reaches all others."""
        for address in addresses:
            verb = "del" if reachable else "add"
            await ip("-n", self.name, "route", verb, "blackhole", f"{address}/32")

    async def signal(self, how: signal.Signals) -> None:
        """Signal all its processes; with SIGKILL, until none is left."""
        while pids := (await ip("netns", "pids", self.name)).split():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), how)
            if how is not signal.SIGKILL:
                return


@asynccontextmanager
async def network(pods: int, hosts: int) -> AsyncIterator[Network]:
    """A network of so many namespaces, and as many addresses on this machine's side."""
    number = random.randrange(1 << 12)
    name, subnet = f"kr{number}", f"10.{216 + (number >> 8)}.{number & 255}"
    here = tuple(f"{subnet}.{host}" for host in range(1, 1 + hosts))
    made = tuple(Namespace(f"{name}p{pod}", f"{subnet}.{10 + pod}") for pod in range(1, 1 + pods))
    await ip("link", "add", name, "type", "bridge")
    try:
        for address in here:
            await ip("addr", "add", f"{address}/24", "dev", name)
        await ip("link", "set", name, "up")
        for pod in made:
            await ip("netns", "add", pod.name)
            peer = ("peer", "name", "eth0", "netns", pod.name)
            await ip("link", "add", pod.name, "type", "veth", *peer)
            await ip("link", "set", pod.name, "master", name, "up")
            await ip("-n", pod.name, "addr", "add", f"{pod.address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                await ip("-n", pod.name, "link", "set", device, "up")
        yield Network(name, here, made)
    finally:
        for pod in made:
            with suppress(NetworkError):  # it was not made
                await ip("link", "del", pod.name)  # a namespace may outlive its name, by a socket
            with suppress(NetworkError):
                await pod.signal(signal.SIGKILL)
                await ip("netns", "del", pod.name)
        await ip("link", "del", name)


class NetworkError(Exception):
    """The `ip` command failed: the message says why."""


async def ip(*words: str) -> str:
    """Run the command `ip`; returns its output. Raises `NetworkError`."""
    process = await asyncio.create_subprocess_exec(
        "ip", *words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise NetworkError(f"ip {' '.join(words)}: {output.decode('utf-8').strip()}")
    return output.decode("utf-8")
