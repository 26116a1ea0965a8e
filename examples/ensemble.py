"""What the examples run on: masters and pods as processes on loopback, with an etcd of its own.

    async with ensemble("shop", "callback.py", masters=2, TTL="3") as here:
        pod = await here.pod("web-1", "web", ["automaton", "web.yml"], KONTROL_PAYLOAD="pod.json")
        await here.until(lambda: pod.find("reporting to"), "acknowledged keepalive")

Each master and each pod has an address of its own in 127/8, which Linux has without set-up, and a
folder of its own, in which all its processes work: that is how they are found. A pod is an agent
and, beside it, what a container would start; if that ends, the agent is ended too, as a pod would.
Nothing is left at the end.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import shlex
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from kontrol.store.embedded import embedded_etcd

MASTER = "kontrol.unity3d.com/master"
_LEADS = r"leader, in term (\d+)"
END = 30.0  # seconds for a process to end by itself
HERE = Path(__file__).parent


class Process:
    """A process, and what it and those that it started wrote to `output`, line by line."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, output: int) -> None:
        self.name = name
        self.process = process
        self.lines: list[str] = []
        self._output = output

    async def read(self, heard: "Heard") -> None:
        """Read until it has ended, and no process is left that could write."""
        # Not a pipe of asyncio's process, whose `wait` would wait for its end.
        reader = asyncio.StreamReader(limit=1 << 20)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(self._output, "rb", 0)
        )
        async for raw in reader:
            self.lines.append(raw.decode("utf-8", "replace").rstrip("\n"))
            heard(self, self.lines[-1])
        transport.close()
        await self.process.wait()

    def find(self, pattern: str) -> re.Match[str] | None:
        """Return the first match in what it wrote, if any."""
        found = (re.search(pattern, line) for line in self.lines)
        return next(filter(None, found), None)

    @property
    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.returncode is None

    def terminate(self) -> None:
        """Send SIGTERM if it runs."""
        if self.runs:  # not by asyncio's process, which may take the exit status from its own loop
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGTERM)


Heard = Callable[[Process, str], None]


class Member:
    """A master, or a pod: processes in one folder, at one address."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name = name
        self.address = address
        self.folder = folder
        self.processes: list[Process] = []
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def runs(self) -> bool:
        """Whether none of its processes has ended."""
        return all(process.runs for process in self.processes)

    def find(self, pattern: str) -> re.Match[str] | None:
        """Return the first match in what its processes wrote, if any."""
        found = (process.find(pattern) for process in self.processes)
        return next(filter(None, found), None)

    async def send(self, number: signal.Signals) -> bool:
        """Signal all its processes: SIGKILL, or SIGSTOP and SIGCONT, are faults of the whole.

        Returns whether there are any.
        """
        found = await asyncio.to_thread(working_in, self.folder)  # others go on meanwhile
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return bool(found)

    async def ended(self) -> list[int]:
        """Wait for the end of its processes; returns their exit statuses."""
        async with asyncio.timeout(END):
            return [await each.process.wait() for each in self.processes]

    async def kill(self) -> None:
        """SIGKILL all its processes."""
        while await self.send(signal.SIGKILL):
            pass  # one may just have started another
        await asyncio.gather(*self.tasks)
        await self.ended()

    async def end(self) -> list[int]:
        """SIGTERM the processes that it was started with; returns their exit statuses."""
        for process in self.processes:
            process.terminate()
        statuses = await self.ended()
        await self.kill()  # what they have left behind
        return statuses


class Ensemble:
    """Masters and pods. `show` gets the name of each process, and each line that it writes."""

    def __init__(
        self,
        app: str,
        callback: Sequence[str],
        folder: Path,
        *,
        etcd: str,
        masters: int,
        show: Callable[[str, str], None],
        settings: dict[str, str],
    ) -> None:
        self.app = app
        self.folder = folder.resolve()  # as the system names working directories
        self.masters: list[Member] = []
        self.pods: dict[str, Member] = {}
        self.programs = HERE / app
        self._callback = shlex.join(callback)
        self._etcd = etcd
        self._show = show
        self._settings = settings
        self._news = asyncio.Event()
        network = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}"  # noqa: S311
        self._addresses = (f"{network}.{host}" for host in range(1, 255))
        self._tier = [next(self._addresses) for _ in range(masters)]
        self.port, self.http_port, self.web_port = (free_port(self._tier[0]) for _ in range(3))

    # What happens to it.

    async def master(self) -> Member:
        """Start the next master, and wait until it accepts keepalives."""
        name, address = f"master-{len(self.masters) + 1}", self._tier[len(self.masters)]
        made = Member(name, address, self._folder(name))
        self.masters.append(made)
        await self._start(
            made,
            ["kontrol"],
            KONTROL_MODE="master",
            KONTROL_ETCD=self._etcd,
            KONTROL_CALLBACK=self._callback,
            KONTROL_HTTP_PORT=str(self.http_port),
            **self._daemon(made, "master"),
            **{f"KONTROL_{name}": value for name, value in self._settings.items()},
        )
        await self.until(lambda: made.find("master on port") or not made.runs, f"start of {name}")
        if not made.runs:
            raise RuntimeError(f"{name} ended\n{self.story()}")
        return made

    async def pod(self, name: str, role: str, command: Sequence[str], **settings: str) -> Member:
        """Start a pod: what runs in it, then its agent."""
        made = self.pods[name] = Member(name, next(self._addresses), self._folder(name))
        environ = {"POD": name, "POD_IP": made.address, "WEB_PORT": str(self.web_port), **settings}
        main = await self._start(made, command, **environ)
        agent = await self._start(made, ["kontrol"], **environ, **self._daemon(made, role))

        async def follow() -> None:
            await main.process.wait()
            self._news.set()
            agent.terminate()

        made.tasks.append(asyncio.create_task(follow(), name=f"end of {name}"))
        return made

    def leader(self) -> Member | None:
        """Return the master that became leader last, if it runs."""
        lines = [(line, master) for master in self.masters for line in master.processes[0].lines]
        found = [(re.search(_LEADS, line), master) for line, master in lines]
        terms = {int(match[1]): master for match, master in found if match is not None}
        last = terms[max(terms)] if terms else None
        return last if last is not None and last.runs else None

    async def run(self, *words: str, pod: Member | None = None) -> str:
        """Run a command, as an operator or in a pod's folder, and return what it printed.

        Raises `RuntimeError` if it fails.
        """
        master = next(each for each in self.masters if each.runs)
        process = await asyncio.create_subprocess_exec(
            *words,
            env=self.environ(KONTROL_MASTER=f"http://{master.address}:{self.http_port}"),
            cwd=pod.folder if pod else self.folder,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
        )
        output, _ = await process.communicate()
        text = output.decode("utf-8", "replace")
        if await process.wait():
            raise RuntimeError(f"{words} ended with {process.returncode}: {text}")
        return text

    async def until(
        self, condition: Callable[[], object], what: str, *, within: float = 60.0
    ) -> None:
        """Wait until `condition` holds: it is looked at whenever a process writes, or ends."""
        try:
            async with asyncio.timeout(within):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise TimeoutError(f"no {what} within {within:g} s\n{self.story()}") from None

    def story(self, lines: int = 15) -> str:
        """Return the last lines of all processes, for people."""
        return "\n".join(
            f"{process.name} ({process.process.returncode}): {line}"
            for process in self._processes()
            for line in process.lines[-lines:]
        )

    async def close(self) -> None:
        """End pods, then masters, and see that nothing is left."""
        members = [*self.pods.values(), *self.masters]
        self._show = _nothing
        for member in members:
            await member.send(signal.SIGCONT)
        try:
            for group in (list(self.pods.values()), self.masters):
                await asyncio.gather(*(member.end() for member in group))
        finally:
            for member in members:  # with those that did not end by themselves
                await member.kill()

    # How it is made.

    def environ(self, **more: str) -> dict[str, str]:
        """Return the environment of a process: ours, without settings of Kontrol."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("KONTROL_")}
        python = str(Path(sys.executable).parent)
        path = (str(self.programs), python, inherited.get("PATH", os.defpath), "/usr/sbin")
        return {
            **inherited,
            "PATH": os.pathsep.join(path),
            "EXAMPLES": str(HERE),
            "TMPDIR": str(self.folder),  # for what a master leaves behind that is killed in a run
            "XDG_RUNTIME_DIR": str(self.folder),
            **more,
        }

    def _daemon(self, member: Member, role: str) -> dict[str, str]:
        return {
            "KONTROL_ID": member.name,
            "KONTROL_IP": member.address,
            "KONTROL_BIND": member.address,
            "KONTROL_PORT": str(self.port),
            "KONTROL_LABELS": json.dumps({"app": self.app, "role": role}),
            "KONTROL_ANNOTATIONS": json.dumps({MASTER: f"{'|'.join(self._tier)}:{self.port}"}),
            "KONTROL_CONTROL": str(member.folder / "control.sock"),
            **({} if role == "master" else {"KONTROL_HTTP_PORT": "0"}),
        }

    def _folder(self, name: str) -> Path:
        made = self.folder / name
        made.mkdir()
        return made

    async def _start(self, member: Member, command: Sequence[str], **settings: str) -> Process:
        output, end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=self.environ(**settings),
                cwd=member.folder,
                stdin=DEVNULL,
                stdout=end,
                stderr=STDOUT,
                start_new_session=True,  # so that Ctrl-C reaches us alone
            )
        except OSError:
            os.close(output)
            raise
        finally:
            os.close(end)
        started = Process(f"{member.name} {Path(command[0]).name}", process, output)
        member.processes.append(started)
        reading = asyncio.create_task(started.read(self._heard), name=f"output of {started.name}")
        reading.add_done_callback(lambda _: self._news.set())
        member.tasks.append(reading)
        return started

    def _heard(self, process: Process, line: str) -> None:
        self._show(process.name, line)
        self._news.set()

    def _processes(self) -> list[Process]:
        members = [*self.masters, *self.pods.values()]
        return [process for member in members for process in member.processes]


def _nothing(_name: str, _line: str) -> None:
    """Show nothing."""


@asynccontextmanager
async def ensemble(
    app: str,
    *callback: str,
    masters: int,
    show: Callable[[str, str], None] = _nothing,
    **settings: str,
) -> AsyncIterator[Ensemble]:
    """Start the masters of the example `app`, whose folder is on the PATH of all processes.

    `callback` is a command; `settings` are the masters', without the `KONTROL_`.
    """
    with tempfile.TemporaryDirectory(prefix="kontrol-") as folder:
        async with embedded_etcd() as endpoints:
            made = Ensemble(
                app,
                callback,
                Path(folder),
                etcd=",".join(endpoints),
                masters=masters,
                show=show,
                settings=settings,
            )
            try:
                for _ in range(masters):
                    await made.master()
                yield made
            finally:
                await made.close()


class Screen:
    """Prints what is done, and what callbacks and hooks write meanwhile."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def step(self, text: str) -> None:
        """Print what is done, or what came of it."""
        print(f"{time.monotonic() - self._start:6.1f}s  {text}", flush=True)

    def line(self, name: str, line: str) -> None:
        """Print a line of a process if a callback or a hook wrote it."""
        if found := re.search(r"kontrol\.(callback|hook)\S*: (.*)", line):
            print(f"         {name.partition(' ')[0]:10} | {found[2]}", flush=True)


def main(play: Callable[[Screen], Coroutine[None, None, None]]) -> None:
    """Run an example until it ends or is interrupted, in which case the exit status is 130."""

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is one
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        await play(Screen())

    try:
        asyncio.run(run())
    except asyncio.CancelledError:
        sys.exit(130)


def working_in(folder: Path) -> list[int]:
    """Return the processes whose working directory is a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if (entry / "cwd").readlink() == folder:
                    found.append(int(entry.name))
    return found


def free_port(address: str) -> int:
    """Return a port that nothing listens on at an address now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
