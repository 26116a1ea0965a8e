"""Runs one command on many pods, up to a number of pods at a time, each independent of the others.

A pod is pinged before the command is sent. So a pod that is dead or hangs is known soon, and has
certainly not received the command. The outcome of each pod is a `Result`, never an exception; no
pod delays another one.

An agent of the original Kontrol has only `invoke`: the command's standard output comes when it
ends, and its exit status is not reported.

`stop` ends what runs. A caller that disconnects ends its command, but would not know whether the
pod noticed; so each pod is pinged once more on the same connection: its answer comes after it has
received the cancellation.
"""

import asyncio
import contextlib
import json
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from kontrol.rpc.client import Client
from kontrol.rpc.errors import CallTimeout, LostRemote, RemoteError, RpcError, Unsendable

PING = 5.0  # seconds for a pod to answer a ping
ORIGINAL = 70.0  # seconds: an agent of the original Kontrol gives up a command after 60
GRACE = 10.0  # seconds for a pod to end a command that timed out: SIGTERM, 5 s, SIGKILL
CANCELLED = 2.0  # seconds for a pod to confirm that its command is cancelled

LATE = 1.5  # how much longer than its time-out a ping may take for that to be the pod's fault

Kind = Literal[
    "done", "dead", "hung", "lost", "refused", "exit", "ended", "interrupted", "closed", "skipped"
]  # fmt: skip


class Target(NamedTuple):
    """A pod: `name` for people, and where its agent listens; with port 0 it accepts no commands.

    An `original` agent is one of the original Kontrol, which has only `invoke`.
    """

    name: str
    key: str
    host: str
    port: int
    original: bool = False


class Result(NamedTuple):
    """The outcome of a pod; `why` is for people. `final` is the last item that `exec` sent."""

    target: Target
    kind: Kind
    why: str
    final: Mapping[str, object] | None = None

    @property
    def ok(self) -> bool:
        """Whether the command ran and exited with status 0."""
        return self.kind == "done"


class Report(Protocol):
    """Receives what happens, as it happens."""

    async def output(self, target: Target, stream: str, data: str | bytes) -> None:
        """Receive what a command wrote to `stream`; the pod waits until this returns."""

    async def ended(self, result: Result) -> None:
        """Receive the outcome of a pod."""


class FanOut:
    """Runs `request`, which is one of `exec`, on pods, `parallel` at a time."""

    def __init__(
        self,
        request: Mapping[str, object],
        *,
        connect: Callable[[Target], Client],
        report: Report,
        parallel: int,
        timeout: float | None = None,
        keyed: bool = False,
        max_failures: int | None = None,
        liveness: float | None = None,
    ) -> None:
        """`timeout` is seconds for each command; the pods end those that take longer.

        After `max_failures` pods have failed, the command is not begun on any other. A pod that
        answers nothing for `liveness` seconds while its command runs is given up.

        `keyed`: connections are made with keys, which agents of the original Kontrol do not have.
        """
        timed = request if timeout is None else {**request, "timeout": timeout}
        self._has_input = "stdin" in request or "stdin64" in request
        self._request = json.dumps(timed)
        self._line = json.dumps({**timed, "cmd": _line(request)})
        self._limit = None if timeout is None else timeout + GRACE
        self._keyed = keyed
        self._connect = connect
        self._report = report
        self._room = asyncio.Semaphore(parallel)
        self._stopping = False
        self._failures = 0
        self._max_failures = max_failures
        self._liveness = liveness
        self._running: set[asyncio.Task[Result]] = set()

    async def run(self, targets: Sequence[Target]) -> list[Result]:
        """Run it on all targets; return their results, in the order of `targets`."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._one(target)) for target in targets]
        return [task.result() for task in tasks]

    def stop(self) -> None:
        """End the running commands, and start no more; then `run` returns."""
        self._stopping = True
        for task in self._running:
            task.cancel()

    async def _one(self, target: Target) -> Result:
        async with self._room:
            result = await self._attempt(target)
            self._failures += not result.ok and result.kind != "skipped"
        await self._report.ended(result)
        return result

    async def _attempt(self, target: Target) -> Result:
        why = self._left_out(target)
        if why is not None:
            return why
        task = asyncio.create_task(self._speak(target))
        self._running.add(task)
        try:
            await asyncio.wait({task})
        finally:
            self._running.discard(task)
            if not task.done():  # this task is cancelled: printing another pod's output failed
                task.cancel()
                await asyncio.wait({task})
        if task.cancelled():  # before its first step
            return Result(target, "interrupted", "not started: interrupted before its turn")
        return task.result()

    def _left_out(self, target: Target) -> Result | None:
        """Return why the command is not sent to a pod, if it is not."""
        if self._stopping:
            return Result(target, "interrupted", "not started: interrupted before its turn")
        if self._max_failures is not None and self._failures >= self._max_failures:
            failed = f"{self._failures} pod{'s' if self._failures != 1 else ''} failed before"
            return Result(target, "skipped", f"not run: {failed} (--max-failures)")
        why = None
        if not target.port:
            why = "accepts no commands: set KONTROL_KEYS, or KONTROL_INVOKE=insecure, for its agent"
        elif target.original and self._keyed:
            why = (
                "its agent is of the original Kontrol, which has no keys: it cannot be called with "
                "KONTROL_KEYS"
            )
        elif target.original and self._has_input:
            why = "not run: its agent is of the original Kontrol, which gives a command no --stdin"
        return None if why is None else Result(target, "closed", why)

    async def _speak(self, target: Target) -> Result:
        try:
            async with self._connect(target) as client:
                if (silent := await _greet(client, target, self._liveness)) is not None:
                    return silent
                try:
                    work = self._invoke if target.original else self._execute
                    if self._liveness is None:
                        return await work(client, target)
                    return await _while_alive(client, target, work, self._liveness)
                except (asyncio.CancelledError, TimeoutError) as error:
                    confirmed = await _confirm(client)
                    if isinstance(error, asyncio.CancelledError) and not self._stopping:
                        raise
                    return _given_up(
                        target, confirmed=confirmed, late=isinstance(error, TimeoutError)
                    )
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            return Result(target, "interrupted", "interrupted before the command was sent")
        except RpcError as error:  # because of its keys, for example: nothing was sent
            return Result(target, "refused", f"refused: {error}")

    async def _execute(self, client: Client, target: Target) -> Result:
        final: Mapping[str, object] | None = None
        items = client.stream("exec", self._request)
        try:
            async with asyncio.timeout(self._limit), contextlib.aclosing(items):
                async for item in items:
                    if not isinstance(item, dict):
                        continue
                    if "exit" in item:
                        final = item
                    for stream in ("stdout", "stderr"):
                        if isinstance(data := item.get(stream), str | bytes):
                            await self._report.output(target, stream, data)
        except RemoteError as error:
            what = "not started" if error.name == "NotStarted" else f"refused: {error.name}"
            return Result(target, "refused", f"{what}: {error.message}")
        except Unsendable as error:
            return Result(target, "refused", f"not started: {error}")
        except RpcError as error:
            return Result(target, "lost", f"lost while its command ran: {error}")
        return judge(target, final)

    async def _invoke(self, client: Client, target: Target) -> Result:
        """Run the command on an agent of the original Kontrol."""
        limit = min(self._limit or ORIGINAL, ORIGINAL)
        try:
            value = await client.call("invoke", self._line, timeout=limit)
        except CallTimeout:
            raise TimeoutError from None
        except RemoteError as error:
            return Result(
                target, "refused", f"refused by an agent of the original Kontrol: {error}"
            )
        except RpcError as error:
            return Result(target, "lost", f"lost while its command ran: {error}")
        if not isinstance(value, str | bytes):
            return Result(
                target, "ended", "no answer within 60 s from an agent of the original Kontrol"
            )
        if value:
            text = value if isinstance(value, bytes) else value.encode("utf-8")
            await self._report.output(target, "stdout", text + b"\n")
        return Result(target, "done", "exit status unknown: its agent is of the original Kontrol")


def _line(request: Mapping[str, object]) -> object:
    """Return the command of a request as a line for the shell."""
    argv = request.get("argv")
    return shlex.join(map(str, argv)) if isinstance(argv, list) else request.get("cmd")


async def _while_alive(
    client: Client,
    target: Target,
    work: Callable[[Client, Target], Awaitable[Result]],
    liveness: float,
) -> Result:
    """Return the result of a command, or that its pod has not answered for so many seconds."""
    working = asyncio.ensure_future(work(client, target))
    pinging = asyncio.ensure_future(_silence(client, liveness))
    try:
        await asyncio.wait({working, pinging}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        why = f"lost while its command ran: no answer for {liveness:g} s (--liveness)"
        return Result(target, "lost", why)
    finally:
        left = [task for task in (working, pinging) if not task.done()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)


async def _silence(client: Client, liveness: float) -> None:
    """Return once the pod has not answered a ping, at the latest `liveness` after its last sign.

    A connection that ended is told by the command's own call, too.
    """
    loop, half = asyncio.get_running_loop(), liveness / 2
    while True:
        sent = loop.time()
        try:
            await client.call("_zerorpc_ping", timeout=half)
        except CallTimeout:
            if loop.time() - sent <= LATE * half:
                return
            continue  # this process was stopped, or busy: ask again
        except RemoteError:
            pass  # an answer
        except RpcError:
            await loop.create_future()  # which the command's own call reports
        await asyncio.sleep(max(0.0, sent + half - loop.time()))


async def _greet(client: Client, target: Target, liveness: float | None = None) -> Result | None:
    """Ping a pod; return None if it answers."""
    limit = min(PING, liveness or PING)
    try:
        await client.call("_zerorpc_ping", timeout=limit)
    except CallTimeout:
        return Result(
            target, "hung", f"hung: no answer within {limit:g} s; the command was not sent"
        )
    except LostRemote as error:
        what = (
            " (its agent is of the original Kontrol: its record has no port)"
            if target.original
            else ""
        )
        return Result(target, "dead", f"dead: {error}{what}")
    except RemoteError as error:
        return Result(target, "refused", f"refused: {error}")
    return None


async def _confirm(client: Client) -> bool:
    """Return whether a pod confirms that its command is cancelled."""
    try:
        await client.call("_zerorpc_ping", timeout=CANCELLED)
    except RpcError:
        return False
    return True


def _given_up(target: Target, *, confirmed: bool, late: bool) -> Result:
    now = (
        "its command was ended"
        if confirmed
        else "it does not answer, and may still run its command"
    )
    if late:
        return Result(target, "hung", f"hung: its command did not end in time; {now}")
    return Result(target, "interrupted", f"interrupted: {now}")


def judge(target: Target, final: Mapping[str, object] | None) -> Result:
    """Return the result for the last item that `exec` sent, None if none came."""
    if final is None:
        return Result(target, "lost", "its answer ended without an exit status")
    status, signal, why = (final.get(name) for name in ("exit", "signal", "why"))
    if why is not None:
        return Result(target, "ended", str(why), final)
    if signal is not None:
        return Result(target, "ended", f"ended by signal {signal}", final)
    if status != 0:
        return Result(target, "exit", f"exit status {status}", final)
    return Result(target, "done", "exit status 0", final)
