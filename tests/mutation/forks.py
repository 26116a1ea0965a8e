"""Calls in children forked from this process, several at a time.

A child has everything that is loaded here, and changes nothing here. It is quiet, bounded in
memory, has a folder of its own for temporary files, and is killed together with what it started.
"""

import multiprocessing
import os
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

_FORK = multiprocessing.get_context("fork")
_MEMORY = 2 << 30  # bytes

_Label = TypeVar("_Label")


@dataclass(frozen=True, slots=True)
class Died:
    """A child that ended without a result: `signal` 0 if by itself, with that exit `status`."""

    status: int
    signal: int


@dataclass(frozen=True, slots=True)
class _Failed:
    trace: str


@dataclass(frozen=True, slots=True)
class _Child(Generic[_Label]):
    label: _Label
    process: BaseProcess
    receiver: Connection
    deadline: float

    def result(self) -> Any:  # noqa: ANN401 - whatever the child returned
        """Return what it sent; kill it if it is late, and what it started in any case."""
        found: Any = None
        late = not self.receiver.poll() and self.process.is_alive()
        if not late:
            with suppress(EOFError):
                found = self.receiver.recv()
            if found is None:
                self.process.join()
        with suppress(ProcessLookupError):  # it may not have made its group yet
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.receiver.close()
        if isinstance(found, _Failed):
            raise RuntimeError(f"in a child: {found.trace}")  # noqa: TRY004
        status = self.process.exitcode or 0
        return Died(max(0, status), max(0, -status)) if found is None else found


def calls(
    work: Iterable[tuple[_Label, Callable[[], Any]]], *, jobs: int, scratch: str, limit: float
) -> Iterator[tuple[_Label, Any]]:
    """Make each call in a child, `jobs` at a time; yields its label with its result, or `Died`.

    A child may take `limit` seconds. Temporary files go below the folder `scratch`. Raises
    `RuntimeError` for an exception in a child.
    """
    source = iter(work)
    children: list[_Child[_Label]] = []
    try:
        while True:
            while len(children) < jobs and (job := next(source, None)) is not None:
                label, call = job
                receiver, sender = _FORK.Pipe(duplex=False)
                process = _FORK.Process(target=_run, args=(call, sender, scratch))
                process.start()
                sender.close()
                children.append(_Child(label, process, receiver, time.monotonic() + limit))
            if not children:
                return
            soonest = min(child.deadline for child in children)
            events = [e for child in children for e in (child.receiver, child.process.sentinel)]
            ready = wait(events, timeout=max(0.0, soonest - time.monotonic()))
            for child in list(children):
                over = time.monotonic() >= child.deadline
                if over or child.receiver in ready or child.process.sentinel in ready:
                    children.remove(child)
                    yield child.label, child.result()
    finally:
        for child in children:
            with suppress(RuntimeError):
                child.result()


def _run(call: Callable[[], Any], sender: Connection, scratch: str) -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(dir=scratch)
    try:
        sender.send(call())
    except Exception:  # noqa: BLE001 - raised again where the result is awaited
        sender.send(_Failed(traceback.format_exc()))
