"""One running script: its environment, its output, its processes, and how they end.

*Processes.* More belongs to a script than its process group, since a process can leave that: the
tree below its process, and every orphan from that tree that became a child of this process, the
subreaper. A variable in their environment, `AUTOMATON_SCRIPT`, tells the orphans of one script from
those of another; an orphan without it counts as the script's if it became our child after the
script had started.

A script ends when its own process ends. Processes that it leaves in the background stay until the
machine ends, and their output is still read: a state `start` may start a server and end. Only a
script that is made to end takes all its processes with it, and `ended` then returns after the last
of them. One script of a state runs at a time, and probes beside it; every other zombie can be
reaped.

*Environment.* Our own, the state's `env`, the `SET` variables, `$SOCKET` and `$INPUT`, each
overriding the one before. All of it is bytes, as in the kernel.

*Output.* Standard output and error share one pipe, which is read as the output comes, at any size,
so that no script waits for the reader. Output is logged in debug, many lines to a record. Its end
is kept, so that the log can say why a script failed without debug. The reader exists as long as a
process has the pipe open, which may be longer than the script.
"""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from automaton.manifest import State
from automaton.protocol import CommandError, Set, encode
from kontrol_common.processes import children, exited, kill_descendants, reap_orphans

MARK = b"AUTOMATON_SCRIPT"
UNKILLABLE = 5.0
"""Seconds after which a process that survives SIGKILL, stuck in the kernel, is not awaited."""

MAX_VARIABLES = 256
MAX_BYTES = 512 * 1024
"""Of all `SET` variables. With an input and a usual environment they stay below the 2 MiB that
Linux allows for arguments and environment together (a quarter of the stack's limit, execve(2))."""


Running = set[int]
"""The processes of the scripts that run now: their statuses are not to be reaped by others."""


class Environment:
    """The environment of scripts. `base` is our own, `socket` the absolute path of our socket."""

    def __init__(self, base: Mapping[bytes, bytes], socket: str) -> None:
        self._base = dict(base)
        self._socket = encode(socket)
        self._variables: dict[bytes, bytes] = {}

    def set(self, command: Set) -> None:
        """Set a variable for the scripts to come. Raises `CommandError` if there is no room."""
        held = {**self._variables, encode(command.name): encode(command.value)}
        size = sum(len(name) + len(value) for name, value in held.items())
        if len(held) > MAX_VARIABLES or size > MAX_BYTES:
            raise CommandError(
                f"{len(held)} variables would hold {size} bytes; at most {MAX_VARIABLES} and "
                f"{MAX_BYTES}: put large values in files"
            )
        self._variables = held

    def outside(self) -> dict[bytes, bytes]:
        """Return the environment of what runs in any state: a probe."""
        return {**self._base, **self._variables, b"SOCKET": self._socket}

    def of(self, state: State, value: str) -> dict[bytes, bytes]:
        """Return the environment of a state's script whose input is `value`."""
        return {
            **self._base,
            **{encode(name): encode(text) for name, text in state.env.items()},
            **self._variables,
            b"SOCKET": self._socket,
            b"INPUT": encode(value),
        }


TAIL = 4096
CHUNK = 65536

_log = logging.getLogger("automaton")


class Pipe(ABC):
    """A pipe that is read on the loop, to its end or until `close`.

    `descriptor` is the script's side; `detach` closes it. Raises `OSError` if there are no
    descriptors left.
    """

    def __init__(self) -> None:
        self.open = True
        self._loop = asyncio.get_running_loop()
        self._read_end, self.descriptor = os.pipe()
        os.set_blocking(self._read_end, False)
        self._loop.add_reader(self._read_end, self._read)

    def detach(self) -> None:
        """Close our copy of the script's side, so that the pipe ends with its last writer."""
        os.close(self.descriptor)

    def close(self) -> None:
        """Stop reading."""
        if self.open:
            self.open = False
            self._loop.remove_reader(self._read_end)
            os.close(self._read_end)

    def _read(self) -> bool:
        """Read one chunk; return whether there may be another. More would block the loop."""
        try:
            data = os.read(self._read_end, CHUNK)
        except BlockingIOError:
            return False
        self._take(data)
        if not data:
            self.close()
        return self.open

    @abstractmethod
    def _take(self, data: bytes) -> None:
        """Take one chunk; an empty one is the end."""


class Output(Pipe):
    """What a script prints: it is logged, and its end is kept."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label
        self._tail = b""
        self._rest = b""

    @property
    def tail(self) -> str:
        """The end of the output so far, at most `TAIL` bytes."""
        return self._tail.decode("utf-8", "replace").strip("\n")

    def flush(self) -> None:
        """Log all output up to now, including an unfinished line."""
        for _ in range(16):  # a pipe's content; a background process may print without end
            if not self.open or not self._read():
                break
        self._emit(self._rest)
        self._rest = b""

    def _take(self, data: bytes) -> None:
        if not data:
            self._emit(self._rest)
            self._rest = b""
            return
        self._tail = (self._tail + data)[-TAIL:]
        whole, newline, rest = (self._rest + data).rpartition(b"\n")
        if len(rest) > CHUNK:
            whole, rest = whole + newline + rest, b""
        self._emit(whole)
        self._rest = rest

    def _emit(self, data: bytes) -> None:
        if data and _log.isEnabledFor(logging.DEBUG):
            lines = data.decode("utf-8", "replace").rstrip("\n").replace("\n", "\n  . ")
            _log.debug("%s prints\n  . %s", self.label, lines)


class Script:
    """A running script. The constructor raises `OSError` or `ValueError` if it cannot be started.

    `name` differs from that of every earlier script. `output` closes by itself when the last
    process that has it open ends. With `stdout` it is a probe, whose standard output goes there:
    it runs beside a state's script, and of the orphans that tell nothing of their script, those in
    its own session are its own.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[bytes, bytes],
        output: Output,
        *,
        running: Running,
        stdout: int | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.output = output
        self._name = f"{os.getpid()}.{name}".encode()
        # Below a script of another automaton, ours belong to that too: the names form a path.
        mark = b"/".join(filter(None, (env.get(MARK), self._name)))
        self._before = frozenset(children(os.getpid()))
        self.interrupted = False
        self._stuck: asyncio.Future[None] = loop.create_future()
        self._start = loop.time()
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output.descriptor if stdout is None else stdout,
            stderr=output.descriptor,
            env={**env, MARK: mark},
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._probe = stdout is not None
        self._running = running
        running.add(self.pid)

    def terminate(self) -> None:
        """Send SIGTERM to all processes of the script; `ended` then waits for all of them."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to all processes of the script; `ended` then waits for all of them."""
        loop = asyncio.get_running_loop()
        loop.call_later(UNKILLABLE, self._give_up)
        self._signal(signal.SIGKILL)

    def _give_up(self) -> None:
        if not self._stuck.done():
            self._stuck.set_result(None)

    def _signal(self, sig: signal.Signals) -> None:
        self.interrupted = True
        others = [pid for pid in children(os.getpid()) if not self._owns(pid)]
        kill_descendants(os.getpid(), sig, spare=others)

    async def ended(self) -> tuple[int, float]:
        """Wait for the end; return the exit status (negative: a signal) and the seconds it took."""
        await first_exit([self.pid], self._stuck)
        seconds = asyncio.get_running_loop().time() - self._start
        try:
            status = self._process.wait(0)
        except subprocess.TimeoutExpired:
            status = self._process.returncode = -signal.SIGKILL
        self._running.discard(self.pid)
        while self.interrupted and not self._stuck.done():
            reap_orphans(self._running)
            roots = [pid for pid in children(os.getpid()) if self._owns(pid)]
            if not roots:
                break
            await first_exit(roots, self._stuck)
        self.output.flush()
        return status, seconds

    def _owns(self, pid: int) -> bool:
        """Return whether this child of ours is the script's process, or an orphan from below it."""
        if pid == self.pid:
            return True
        with contextlib.suppress(OSError):  # gone, of another user, or there is no /proc
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            marks = [entry for entry in environment if entry.startswith(MARK + b"=")]
            names = b"/".join(marks).partition(b"=")[2].split(b"/")
            if any(name.partition(b".")[0] == b"%d" % os.getpid() for name in names):
                return self._name in names
        session = _session(pid)
        if session == self.pid or self._probe:
            return session == self.pid
        return pid not in self._before and session not in self._running


def _session(pid: int) -> int:
    """Return the session of a process, 0 if it is gone."""
    try:
        return os.getsid(pid)
    except OSError:
        return 0


async def first_exit(pids: Iterable[int], until: asyncio.Future[None]) -> None:
    """Wait until one of the processes has exited, or `until` is done."""
    waits = [asyncio.ensure_future(exited(pid)) for pid in pids]
    try:
        await asyncio.wait([*waits, until], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
