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
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from kontrol.rpc.client import Client
from kontrol.rpc.errors import CallTimeout, LostRemote, RemoteError, RpcError, Unsendable

PING = 5.0  # seconds for a pod to answer a ping
ORIGINAL = 70.0  # seconds: an agent of the original Kontrol gives up a command after 60
GRACE = 10.0  # seconds for a pod to end a command that timed out: SIGTERM, 5 s, SIGKILL
CANCELLED = 2.0  # seconds for a pod to confirm that its command is cancelled

Kind = Literal["done", "dead", "hung", "lost", "refused", "exit", "ended", "interrupted", "closed"]


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
    ) -> None:
        """`timeout` is seconds for each command; the pods end those that take longer.

        `keyed`: connections are made with keys, which agents of the original Kontrol do not have.
        """
        timed = request if timeout is None else {**request, "timeout": timeout}
        self._request = json.dumps(timed)
        self._line = json.dumps({**timed, "cmd": _line(request)})
        self._limit = None if timeout is None else timeout + GRACE
        self._keyed = keyed
        self._connect = connect
        self._report = report
        self._room = asyncio.Semaphore(parallel)
        self._stopping = False
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
        await self._report.ended(result)
        return result

    async def _attempt(self, target: Target) -> Result:
        if self._stopping:
            return Result(target, "interrupted", "not started: interrupted before its turn")
        if not target.port:
            return Result(
                target,
                "closed",
                "accepts no commands: set KONTROL_KEYS, or KONTROL_INVOKE=insecure, for its agent",
            )
        if target.original and self._keyed:
            return Result(
                target,
                "closed",
                "its agent is of the original Kontrol, which has no keys: it cannot be called with "
                "KONTROL_KEYS",
            )
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

    async def _speak(self, target: Target) -> Result:
        try:
            async with self._connect(target) as client:
                if (silent := await _greet(client, target)) is not None:
                    return silent
                try:
                    if target.original:
                        return await self._invoke(client, target)
                    return await self._execute(client, target)
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


async def _greet(client: Client, target: Target) -> Result | None:
    """Ping a pod; return None if it answers."""
    try:
        await client.call("_zerorpc_ping", timeout=PING)
    except CallTimeout:
        return Result(
            target, "hung", f"hung: no answer within {PING:g} s; the command was not sent"
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
