"""A job: one admitted command, from its start to its result, and its output.

Output travels to the caller in pieces of text. `OutputQueue` bounds how much of it waits for the
caller, so a caller that does not read stops its command.

Invariant: when a job is over, no process of its command is left.
"""

import asyncio
import codecs
from collections.abc import Collection
from dataclasses import dataclass

from kontrol.agent.request import CommandRequest, FencingToken
from kontrol.process.command import Outcome
from kontrol.process.guard import GuardError
from kontrol.rpc.errors import Refused
from kontrol.rpc.methods import Call


@dataclass(eq=False, slots=True)
class Job:
    """The call, its request, when it began (loop time), and the task that runs the command.

    `fenced` is the token that ended it, if one did.
    """

    call: Call
    request: CommandRequest
    began: float
    task: "asyncio.Task[Outcome]"
    fenced: FencingToken | None = None
    killed: bool = False

    def is_older_than(self, token: FencingToken) -> bool:
        """Tell whether it runs for a lower term of the same tier."""
        own = self.request.fencing_token
        return own is not None and own.tier == token.tier and own.term < token.term

    def fence(self, token: FencingToken) -> None:
        """Kill it because a higher term has called."""
        self.fenced = self.fenced or token
        self.kill()

    def kill(self) -> None:
        """Kill the command; `task` is done when it is gone.

        A second cancellation would end the task before that, so there is only one.
        """
        if not self.killed:
            self.killed = True
            self.task.cancel()

    async def over(self) -> None:
        """Wait until it is over; cancelled, end it first."""
        try:
            await asyncio.wait({self.task})
        finally:
            await end({self})

    def refusal(self) -> Refused | None:
        """Return the refusal of a command, over by now, whose arguments do not match."""
        if self.task.cancelled() or self.task.exception() is not None:
            return None
        outcome = self.task.result()
        return Refused("Forbidden", outcome.detail) if outcome.reason == "refused" else None

    def result(self) -> Outcome:
        """Return the outcome, once it is over. Raises `Refused`."""
        if self.task.cancelled():
            if self.fenced is not None:
                raise Refused(
                    "Fenced",
                    f"killed: term {self.fenced.term} of tier {self.fenced.tier!r} has called here,"
                    " and this command is of a lower term; its leader has been replaced",
                )
            raise Refused("Ended", "killed, because the agent is shutting down")
        try:
            outcome = self.task.result()
        except (OSError, GuardError) as error:
            raise Refused("NotStarted", str(error)) from None
        if (refusal := self.refusal()) is not None:
            raise refusal
        if outcome.reason == "not started":
            raise Refused("NotStarted", outcome.detail)
        return outcome

    def summary(self) -> str:
        """Return one line for the audit: how it ended."""
        if not self.task.cancelled():
            error = self.task.exception()
            return self.task.result().detail if error is None else f"not run: {error}"
        if self.fenced is not None:
            return f"killed, because term {self.fenced.term} has called"
        return f"killed: {self.call.gone or 'the agent is shutting down'}"


async def end(jobs: Collection[Job]) -> None:
    """Kill the commands of jobs that are not over, and wait until they are gone."""
    left = [job for job in jobs if not job.task.done()]
    for job in left:
        job.kill()
    if left:
        await asyncio.wait({job.task for job in left})


ROOM = 4
"""Pieces that wait for the caller. Each is what one read of a pipe returned: 64 KiB on Linux."""


class OutputQueue:
    """Pieces in order: `put` waits while `ROOM` are unread, `get` returns None after `close`."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(ROOM)
        self._pieces: asyncio.Queue[dict[str, object] | None] = asyncio.Queue()

    async def put(self, piece: dict[str, object]) -> None:
        """Add a piece once there is room."""
        await self._room.acquire()
        self._pieces.put_nowait(piece)

    def close(self) -> None:
        """End the queue: `get` returns None after the last piece."""
        self._pieces.put_nowait(None)

    async def get(self) -> dict[str, object] | None:
        """Wait for the next piece and return it, or None after the last one."""
        piece = await self._pieces.get()
        self._room.release()
        return piece


class Pieces:
    """Cuts a stream of bytes into pieces for a caller: `str` where it is UTF-8, else `bytes`.

    Nothing is lost: all pieces together, encoded again, are the stream. A character that a read
    has split waits for its other bytes.
    """

    def __init__(self, name: str, queue: OutputQueue) -> None:
        self._name = name
        self._queue = queue
        self._rest = b""

    async def put(self, chunk: bytes) -> None:
        """Pass on all complete characters, once the queue has room."""
        data = self._rest + chunk
        try:
            text, used = codecs.utf_8_decode(data, "strict", False)  # noqa: FBT003  # no keywords
        except UnicodeDecodeError:
            self._rest = b""
            await self._queue.put({self._name: data})
            return
        self._rest = data[used:]
        if text:
            await self._queue.put({self._name: text})

    def rest(self) -> list[dict[str, object]]:
        """Return what is left at the end: the first bytes of a character, if any."""
        return [{self._name: self._rest}] if self._rest else []


def joined(output: bytes) -> str | bytes:
    """Return output without its final newline, as `str` if it is UTF-8."""
    lines = output.removesuffix(b"\n")
    try:
        return lines.decode("utf-8")
    except UnicodeDecodeError:
        return lines
