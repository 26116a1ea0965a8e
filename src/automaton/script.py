"""One script at work: its process, everything that it starts, and how they end.

What belongs to a script is more than its process group, since a process may leave that: it is the
tree below its process, and every orphan that came to us, the subreaper, from that tree. Orphans are
told apart by a variable in their environment, `AUTOMATON_SCRIPT`; one that was started with a clean
environment counts as the script's if it came to us after the script had started.

A script ends when its own process ends. What it leaves in the background then lives on, its output
still drained (a state `start` may start a server and be done), until the machine ends. Only a
script that is made to end takes everything that belongs to it along, and `ended` then returns after
the last of them. One script runs at a time; that is what lets every other zombie be reaped.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from automaton.output import Output
from automaton.processes import children, exited, kill_descendants, reap_orphans

MARK = b"AUTOMATON_SCRIPT"
UNKILLABLE = 5.0
"""Seconds after which a process that survives SIGKILL (stuck in the kernel) is given up."""


class Script:
    """A running script. The constructor raises `OSError` or `ValueError` if it cannot be started.

    `name` tells it from every script before it. `output` is taken over, and closes by itself when
    the last process that holds it ends.
    """

    def __init__(
        self, name: str, argv: Sequence[str], env: Mapping[bytes, bytes], output: Output
    ) -> None:
        loop = asyncio.get_running_loop()
        self.output = output
        self._name = f"{os.getpid()}.{name}".encode()
        # Below another automaton's script, ours are its script's too: the names make a path.
        mark = b"/".join(filter(None, (env.get(MARK), self._name)))
        self._before = frozenset(children(os.getpid()))
        self.interrupted = False
        self._stuck: asyncio.Future[None] = loop.create_future()
        self._start = loop.time()
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output.descriptor,
            stderr=subprocess.STDOUT,
            env={**env, MARK: mark},
            start_new_session=True,
        )
        self.pid = self._process.pid

    def terminate(self) -> None:
        """SIGTERM everything that belongs to the script; it will end with all of it."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL everything that belongs to the script; it will end with all of it."""
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
        while self.interrupted and not self._stuck.done():
            reap_orphans([self.pid])
            roots = [pid for pid in children(os.getpid()) if self._owns(pid)]
            if not roots:
                break
            await first_exit(roots, self._stuck)
        self.output.flush()
        return status, seconds

    def _owns(self, pid: int) -> bool:
        """Tell whether this child of ours is the script's process, or an orphan from below it."""
        if pid == self.pid:
            return True
        with contextlib.suppress(OSError):  # gone, another user's, or no /proc here
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            marks = [entry for entry in environment if entry.startswith(MARK + b"=")]
            names = b"/".join(marks).partition(b"=")[2].split(b"/")
            if any(name.partition(b".")[0] == b"%d" % os.getpid() for name in names):
                return self._name in names
        return pid not in self._before


async def first_exit(pids: Iterable[int], until: asyncio.Future[None]) -> None:
    """Wait until one of the processes has exited, or `until` is done."""
    waits = [asyncio.ensure_future(exited(pid)) for pid in pids]
    try:
        await asyncio.wait([*waits, until], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
