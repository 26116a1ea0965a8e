"""The hub: hears of every start and end of one tier's callback, and says what each is to do.

It checks the rules (`tests.e2e.rules`) at every start: callbacks never overlap, run and term only
rise, nothing runs for what is acknowledged, the state is that of an acknowledged run, and `CHANGES`
is the true difference from the pods of that run. So every test checks them, whatever else it is
about. That a callback is dead is the kernel's word (a pidfd).
"""

import asyncio
import json
import os
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.observed import Process, Run, Step
from tests.e2e.rules import History, violations

DEADLINE = 60.0  # seconds, for whatever must happen at all: the machine may be very busy


def succeed(run: Run) -> list[Step]:
    """Return a state that names the run."""
    return [("print", json.dumps({"run": run.number}))]


def hold(run: Run) -> list[Step]:
    """Stay until told more."""
    return [("hold", None)]


class Hub:
    """Listens at `path`. `behave` decides on the steps of each run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history = History()
        self.behave: Callable[[Run], list[Step]] = succeed
        self.violations: list[str] = []
        self._news = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._accept, self.path, limit=1 << 24)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        loop = asyncio.get_running_loop()
        for process in (*self.runs, *self.descendants):
            if process.pidfd is not None:
                loop.remove_reader(process.pidfd)
                os.close(process.pidfd)
                process.pidfd = None
        if self.violations and error is None:
            raise AssertionError("\n".join(self.violations))

    # What tests ask, and wait for.

    @property
    def runs(self) -> list[Run]:
        """Every start of the callback."""
        return self.history.runs

    @property
    def descendants(self) -> list[Process]:
        """Every process that a callback left behind."""
        return self.history.descendants

    @property
    def acknowledged(self) -> dict[int, Run]:
        """The runs that a master said were acknowledged, by number."""
        return self.history.acknowledged

    async def until(
        self, condition: Callable[[], bool], what: str, *, within: float = DEADLINE
    ) -> None:
        """Wait until `condition` holds; it is looked at with every event."""
        try:
            async with asyncio.timeout(within), self._news:
                await self._news.wait_for(lambda: self.violations or condition())
        except TimeoutError:
            raise AssertionError(f"no {what} within {within:g} s; {self.story()}") from None
        assert not self.violations, "\n".join(self.violations)

    async def started(self, number: int = 0, *, after: "Run | None" = None) -> Run:
        """Wait for the next run: any after `after`, and from `number` on; returns the first."""
        floor = max(number, after.number + 1 if after else 0)

        def found() -> list[Run]:
            return [run for run in self.history.current if run.number >= floor]

        await self.until(lambda: bool(found()), f"start of run {floor} or later")
        return found()[0]

    async def acknowledgement(self, run: Run) -> None:
        """Wait until a master says that this run is acknowledged."""
        await self.until(lambda: run.number in self.acknowledged, f"end of run {run.number}")

    async def settled(
        self,
        ids: Collection[str],
        where: Callable[[Run], bool] = lambda run: True,
        *,
        within: float = DEADLINE,
    ) -> Run:
        """Wait until the last run is acknowledged and was for the pods with these ids."""

        def there() -> bool:
            return any(
                run.number in self.acknowledged and run.ids == set(ids) and where(run)
                for run in self.history.current[-1:]
            )

        what = f"acknowledged run for {len(ids)} pods {sorted(ids)[:30]}"
        await self.until(there, what, within=within)
        return self.runs[-1]

    def since(self, before: Run) -> dict[str, set[str]]:
        """What the acknowledged runs after `before` were told, together: ids by kind of change."""
        later = [run for number, run in self.acknowledged.items() if number > before.number]
        kinds = ("joined", "left", "lost", "changed")
        return {kind: set().union(*(run.changes(kind) for run in later)) for kind in kinds}

    def story(self) -> str:
        """The runs so far, for a failed assertion."""
        lines = [
            f"run {run.number} of term {run.term}: {len(run.pods)} pods "
            f"{ {k: len(v) for k, v in run.document['changes'].items() if v} }"
            f"{' acknowledged' if run.number in self.acknowledged else ''}"
            f"{'' if run.gone.is_set() else ' (runs)'}"
            for run in self.runs[-20:]
        ]
        return "so far:\n  " + "\n  ".join(lines or ["no run"])

    def forget(self) -> None:
        """Judge no longer by what was acknowledged: the store is not what it was."""
        self.history.acknowledged = {}
        self.history.forgotten = len(self.runs)

    def hear(self, number: int) -> None:
        """A master said that a run is acknowledged."""
        for run in self.history.current:
            if run.number == number:
                self.acknowledged[number] = run
        self._tell()

    # What arrives.

    def _tell(self) -> None:
        async def notify() -> None:
            async with self._news:
                self._news.notify_all()

        self._own(notify())

    def _own(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._own(self._serve(reader, writer))

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        pid = _peer(writer)
        try:
            pidfd: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            pidfd = None
        try:
            line = await reader.readline()
            if not line.endswith(b"\n"):
                if pidfd is not None:
                    os.close(pidfd)
                return  # it was killed in mid-word
            message = json.loads(line)
            if message["kind"] == "descendant":
                process = Process(pid, pidfd)
                self.descendants.append(process)
            else:
                process = run = self._begin(pid, pidfd, message, writer)
                run.tell(*self.behave(run))
            self._watch(process)
            self._tell()
            while beat := await reader.readline():
                if isinstance(process, Run) and beat.endswith(b"\n"):
                    if not process.beat:
                        self._tell()
                    process.beat = json.loads(beat)["beat"]
        except ConnectionError:
            pass
        finally:
            writer.close()

    def _begin(
        self, pid: int, pidfd: int | None, message: dict[str, Any], writer: StreamWriter
    ) -> Run:
        run = Run(
            pid,
            pidfd,
            started=message["started"],
            env=message["env"],
            document=json.loads(message["stdin"]),
            files=message["files"],
            writer=writer,
        )
        self.violations += violations(self.history, run)
        self.runs.append(run)
        return run

    def _watch(self, process: Process) -> None:
        if process.pidfd is None:
            process.gone.set()
            return
        loop = asyncio.get_running_loop()

        def ended(pidfd: int) -> None:
            loop.remove_reader(pidfd)
            process.gone.set()
            self._tell()

        loop.add_reader(process.pidfd, ended, process.pidfd)


def _peer(writer: StreamWriter) -> int:
    credentials = writer.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    pid, _, _ = struct.unpack("3i", credentials)
    return int(pid)
