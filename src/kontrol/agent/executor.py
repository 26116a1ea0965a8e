"""The executor: runs the commands of `invoke` and `exec` for callers.

Whether a call may run is decided in one step, without an await: the caller's key, the request, the
allow-list, the fence, the bounds. A call that passes becomes a job: a task that owns the command
through a guard (`kontrol.process`), as a callback is run. One check is left to the command's
process, before it executes anything: whether the arguments match the patterns of the allow-list.
The handler of the call awaits the job, and cancels it when its caller goes away.

Invariants:

- A job ends with its caller, with its term, or with the agent, whichever is first, and then no
  process of its command is left.
- A command of a term starts only after those of lower terms are gone.
- Every call is one line of the audit.
- Nothing here blocks the event loop, so keepalives are sent on time.
- Only `invoke` keeps output. A caller that does not read stops its command, in bounded memory.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kontrol.agent import audit
from kontrol.agent.allow import AllowList
from kontrol.agent.job import Job, OutputQueue, Pieces, end, joined
from kontrol.agent.request import (
    BadRequest,
    CommandRequest,
    Fence,
    FencingToken,
    read_exec,
    read_invoke,
)
from kontrol.process.command import Command, Outcome
from kontrol.process.pool import Guards
from kontrol.process.run import OnChunk
from kontrol.rpc.errors import Refused
from kontrol.rpc.methods import Call, Method

CALLERS = frozenset({"master", "operator"})
"""The kinds of keys whose holders may run commands."""

_UNLIMITED = 2**63


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of remote commands. The string below each is its line in the published table."""

    commands: int = 16
    """Remote commands that run at the same time in one agent. Each has a guard of 11 MB."""

    commands_per_address: int = 8
    """The same, for the callers of one address."""

    answer: int = 1024 * 1024
    """Bytes that `invoke` answers. `exec` streams any amount."""

    seconds: float = 60.0
    """Seconds after which `invoke` ends its command and answers null."""


class Executor:
    """Runs commands for callers. An asynchronous context manager: its end ends all of them.

    Commands get `environ`, without the variables named by `secrets`. With the file `allow`, only
    its commands run. Without `insecure`, only holders of keys may call. Raises `AllowListError`.
    """

    def __init__(
        self,
        guards: Guards,
        *,
        environ: Mapping[str, str],
        secrets: Collection[str],
        allow: Path | None = None,
        insecure: bool = False,
        bounds: Bounds = Bounds(),
    ) -> None:
        self._guards = guards
        self._environ = {name: text for name, text in environ.items() if name not in secrets}
        self._allow = None if allow is None else AllowList(allow)
        self._insecure = insecure
        self._bounds = bounds
        self._fence = Fence()
        self._jobs: set[Job] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._jobs)

    def methods(self) -> Mapping[str, Method]:
        """Return the methods for a server."""
        return {"invoke": self._invoke, "exec": self._exec}

    async def _invoke(self, call: Call, raw: object) -> object:
        """Run `cmd` of the JSON text `raw` by the shell, with `$INPUT` set to `raw`.

        Returns its standard output, lines joined by newlines, whatever its exit status; null if
        there is no JSON or no `cmd`, or after 60 s.
        """
        bounds = self._bounds
        try:
            job = self._start(call, lambda: read_invoke(raw, bounds.seconds), limit=bounds.answer)
        except BadRequest:
            return None
        await job.over()
        outcome = job.result()
        if outcome.reason == "too much output":
            raise Refused("TooLarge", f"{outcome.detail}: use `exec`, which streams")
        return None if outcome.reason == "timeout" else joined(outcome.stdout)

    async def _exec(self, call: Call, raw: object) -> AsyncGenerator[object, None]:
        """Run what the JSON text `raw` says, and stream what it writes.

        `raw` has `argv`, a list, or `cmd`, for the shell; optional `env`, `stdin` (text) or
        `stdin64` (base64), `timeout` in seconds, and a callback's `tier`, `term`, `run`. Streams
        {"stdout": text} and {"stderr": text}, bytes where it is no UTF-8; at last {"exit",
        "signal", "seconds", "why"}: one of the first two is null, and so is `why` if the command
        ended by itself.
        """
        queue = OutputQueue()
        out, err = Pieces("stdout", queue), Pieces("stderr", queue)
        try:
            job = self._start(
                call, lambda: read_exec(raw), limit=_UNLIMITED, on_stdout=out.put, on_stderr=err.put
            )
        except BadRequest as error:
            raise Refused("InvalidRequest", str(error)) from None
        job.task.add_done_callback(lambda _: queue.close())
        try:
            while (piece := await queue.get()) is not None:
                yield piece
        finally:
            await end({job})
        outcome = job.result()
        for piece in (*out.rest(), *err.rest()):
            yield piece
        yield {
            "exit": outcome.status,
            "signal": outcome.signal,
            "seconds": outcome.seconds,
            "why": None if outcome.reason in {"exited", "signalled"} else outcome.detail,
        }

    def _start(
        self,
        call: Call,
        read: Callable[[], CommandRequest],
        *,
        limit: int,
        on_stdout: OnChunk | None = None,
        on_stderr: OnChunk | None = None,
    ) -> Job:
        """Start the command of a call, without an await. Raises `Refused`, `BadRequest`."""
        asked: CommandRequest | None = None
        try:
            self._authorise(call)
            asked = read()
            self._authorise_token(call, asked.fencing_token)
            permitted = asked if self._allow is None else self._allow.permit(asked)
            older = self._fence_off(permitted.fencing_token)
            self._find_room(call, older)
        except (BadRequest, Refused) as refusal:
            audit.refused(call, asked, refusal)
            raise
        command = Command(
            permitted.words,
            {**self._environ, **permitted.env},
            stdin=permitted.stdin,
            timeout=permitted.timeout,
            stdout_limit=limit,
            checks=permitted.checks,
        )
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._conduct(command, older, on_stdout, on_stderr))
        job = Job(call, asked, loop.time(), task)
        self._jobs.add(job)
        task.add_done_callback(lambda _: self._finish(job))
        audit.began(call, asked)
        return job

    def _authorise(self, call: Call) -> None:
        if not self._insecure and call.caller not in CALLERS:
            raise Refused(
                "Forbidden",
                f"commands require a key of kind {' or '.join(sorted(CALLERS))}; the caller has"
                f" {'none' if call.caller is None else f'one of kind {call.caller}'}",
            )

    def _authorise_token(self, call: Call, token: FencingToken | None) -> None:
        """Let only masters raise the fence: an operator under an allow-list could block them."""
        if token is not None and call.caller == "operator":
            raise Refused(
                "Forbidden",
                "an operator's key cannot act for a callback: leave out tier, term and run, or use"
                " a master's key, as callbacks do",
            )

    def _fence_off(self, token: FencingToken | None) -> set[Job]:
        """Admit a term: end the commands of lower ones, and return them. Raises `Refused`."""
        if token is None:
            return set()
        self._fence.admit(token)
        older = {job for job in self._jobs if job.is_older_than(token)}
        for job in older:
            job.fence(token)
        return older

    def _find_room(self, call: Call, ending: set[Job]) -> None:
        """Raise `Refused` if too many commands run; `ending` do not count."""
        bounds, address = self._bounds, audit.address_of(call)
        counts = Counter(audit.address_of(job.call) for job in self._jobs - ending)
        if counts.total() >= bounds.commands:
            raise Refused(
                "Busy", f"{bounds.commands} commands run here, the most at a time: try again later"
            )
        if counts[address] >= bounds.commands_per_address:
            raise Refused(
                "Busy",
                f"{bounds.commands_per_address} commands run here for {address}, the most for one"
                " address: await some",
            )

    async def _conduct(
        self,
        command: Command,
        older: set[Job],
        on_stdout: OnChunk | None,
        on_stderr: OnChunk | None,
    ) -> Outcome:
        if older:
            await asyncio.wait({job.task for job in older})
        async with self._guards.guard() as guard:
            return await guard.run(
                command, deadline=None, on_stdout=on_stdout, on_stderr_chunk=on_stderr
            )

    def _finish(self, job: Job) -> None:
        """Log a job that is over, and forget it."""
        self._jobs.discard(job)
        refusal = job.refusal()
        if refusal is not None:
            audit.refused(job.call, job.request, refusal)
            return
        seconds = asyncio.get_running_loop().time() - job.began
        audit.ended(job.call, job.request, job.summary(), seconds)


def refusing() -> Mapping[str, Method]:
    """Return the methods of a server that may not run commands: they refuse, and name the fix."""
    refusal = Refused(
        "Forbidden",
        "this pod does not accept commands: set KONTROL_KEYS to accept them from holders of keys,"
        " or KONTROL_INVOKE=insecure to accept them from every client; KONTROL_INVOKE=off, or a"
        " mode without `agent`, turns them off",
    )

    async def refuse(call: Call, _raw: object) -> object:
        """Refuse: this pod does not accept commands."""
        audit.refused(call, None, refusal)
        raise refusal

    return {"invoke": refuse, "exec": refuse}
