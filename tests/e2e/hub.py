"""The hub: hears of every start and end of one tier's callback, and says what each is to do.

It knows the rules that no schedule may break, and checks them at every start: callbacks never
overlap, run and term only rise, nothing runs for what is acknowledged, the state is that of an
acknowledged run, and `CHANGES` is the true difference from the pods of that run. So every test
checks them, whatever else it is about. That a callback is dead is the kernel's word (a pidfd).
"""

import asyncio
import json
import os
import select
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kontrol.ensemble.canonical import JSON

Step = tuple[str, object]
Pod = dict[str, Any]

DEADLINE = 25.0  # seconds, for whatever must happen at all: the machine may be very busy


@dataclass(eq=False)
class Process:
    """A process that reported here."""

    pid: int
    pidfd: int | None
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def alive(self) -> bool:
        """Whether it runs at this moment; not what was last heard."""
        if self.pidfd is None:
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)


@dataclass(eq=False)
class Run(Process):
    """One start of the callback, with what it was given.

    `started` and `beat` (its last sign of life under `hold`) are seconds of the system's monotonic
    clock, as the callback itself read it.
    """

    started: float = 0.0
    beat: float = 0.0
    env: dict[str, str] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str | None] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    writer: StreamWriter | None = None

    @property
    def doomed(self) -> bool:
        """Whether it was told to end otherwise than well."""
        return any(
            name in ("orphan", "hang") or (name == "exit" and status != 0)
            for name, status in self.steps
        )

    @property
    def number(self) -> int:
        return int(self.document["run"])

    @property
    def term(self) -> int:
        return int(self.document["term_id"])

    @property
    def digest(self) -> str:
        return str(self.document["hash"])

    @property
    def state(self) -> JSON:
        found: JSON = self.document.get("state")
        return found

    @property
    def pods(self) -> list[Pod]:
        found: list[Pod] = self.document["pods"]
        return found

    @property
    def ids(self) -> set[str]:
        return {pod["id"] for pod in self.pods}

    @property
    def seqs(self) -> dict[str, int]:
        """The number of each pod, by its id."""
        return {pod["id"]: pod["seq"] for pod in self.pods}

    def changes(self, kind: str) -> set[str]:
        """The ids of the pods that joined, left, were lost or changed."""
        return {row["id"] for row in self.document["changes"][kind]}

    def tell(self, *steps: Step) -> None:
        """Say what a callback under `hold` is to do next."""
        assert self.writer is not None
        self.steps = list(steps)
        self.writer.write(json.dumps(steps).encode("utf-8") + b"\n")


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
        self.runs: list[Run] = []
        self.descendants: list[Process] = []
        self.acknowledged: dict[int, Run] = {}
        self.behave: Callable[[Run], list[Step]] = succeed
        self.violations: list[str] = []
        self._known: dict[int, Run] = {}
        self._forgotten = 0  # runs before this one are of another history
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

    # What tests wait for.

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
            return [run for run in self.runs[self._forgotten :] if run.number >= floor]

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
            last = self.runs[-1] if len(self.runs) > self._forgotten else None
            return (
                last is not None
                and last.number in self.acknowledged
                and last.ids == set(ids)
                and where(last)
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
        self._known = {}
        self.acknowledged = {}
        self._forgotten = len(self.runs)

    def hear(self, number: int) -> None:
        """A master said that a run is acknowledged."""
        for run in self.runs[self._forgotten :]:
            if run.number == number:
                self.acknowledged[number] = self._known[number] = run
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
        for violated in (*self._overlaps(run), *self._misinformed(run), *self._needless(run)):
            self.violations.append(f"run {run.number} of term {run.term}: {violated}")
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

    # The rules.

    def _overlaps(self, run: Run) -> list[str]:
        earlier = [*self.runs, *self.descendants]
        found = [f"process {other.pid} of a run before lives" for other in earlier if other.alive]
        found += [
            f"run {other.number} was alive {other.beat - run.started:.3f} s after this one began"
            for other in self.runs
            if other.beat > run.started
        ]
        if self.runs:
            last = self.runs[-1]
            if run.number <= last.number:
                found.append(f"its number is not over {last.number}")
            if run.term < last.term:
                found.append(f"its term is below {last.term}")
        return found

    def _misinformed(self, run: Run) -> list[str]:
        """Compare all that the run was given with itself and with the run that it follows."""
        document, env = run.document, run.env
        found = []
        for name in ("pods", "state", "changes"):
            text = env.get(name.upper())
            if text is not None and json.loads(text) != document.get(name):
                found.append(f"{name} differ between environment and standard input")
            text = run.files[f"{name.upper()}_FILE"]
            if (None if text is None else json.loads(text)) != document.get(name):
                found.append(f"{name} differ between file and standard input")
        for name, key in (
            ("HASH", "hash"),
            ("MD5", "hash"),
            ("TERM_ID", "term_id"),
            ("RUN", "run"),
        ):
            if env[name] != str(document[key]):
                found.append(f"{name} is {env[name]}, on standard input {document[key]}")
        for key in ("seq", "key", "id"):
            values = [pod[key] for pod in run.pods]
            if len(set(values)) < len(values):
                found.append(f"two pods have the same {key}")
        differences = [_differences(before, run) for before in self._before(run)]
        if differences and all(differences):
            found += differences[-1]
        return found

    def _before(self, run: Run) -> list[list[Pod]]:
        """The pods of the runs that may be the last acknowledged one, best guess last.

        It is the one that the state names, or a later one: of a leader that died, only the store
        may know that its run was acknowledged. None: nobody knows.
        """
        if not self._known:
            return [] if self._forgotten or self.acknowledged or run.state is not None else [[]]
        state = run.document.get("state")
        named = state.get("run", 0) if isinstance(state, dict) else 0
        floor = max(named, *self._known)
        found = [
            other
            for other in self.runs[self._forgotten :]
            if other.number >= floor and not other.doomed
        ]
        return [other.pods for other in reversed(found)]

    def _needless(self, run: Run) -> list[str]:
        last = self.runs[-1] if self.runs else None
        if last is None or last.number not in self._known or last.digest != run.digest:
            return []
        return [f"it runs for {run.digest}, which run {last.number} acknowledged"]


def _peer(writer: StreamWriter) -> int:
    credentials = writer.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    pid, _, _ = struct.unpack("3i", credentials)
    return int(pid)


def _differences(before: list[Pod], run: Run) -> list[str]:
    """Tell what of a run's `CHANGES` is not the difference between `before` and its pods."""
    was, now = ({pod["seq"]: pod for pod in pods} for pods in (before, run.pods))
    told = {kind: {row["seq"] for row in rows} for kind, rows in run.document["changes"].items()}
    found = []
    true = {
        "joined": now.keys() - was.keys(),
        "changed": {seq for seq in now.keys() & was.keys() if now[seq] != was[seq]},
    }
    for kind, seqs in true.items():
        if told[kind] != seqs:
            found.append(f"{kind} are told as {told[kind]}, and truly {seqs}")
    gone = was.keys() - now.keys()
    if told["left"] | told["lost"] != gone or told["left"] & told["lost"]:
        found.append(f"gone are {gone}; told as left {told['left']} and lost {told['lost']}")
    return found
