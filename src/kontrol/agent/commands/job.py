"""A command that was admitted, from its start to what came of it.

Invariant: a job that is over has nothing of its command left.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from kontrol.agent.commands.request import Mandate, Request
from kontrol.process.command import Outcome
from kontrol.process.guard import GuardError
from kontrol.rpc.errors import Refused
from kontrol.rpc.methods import Call


@dataclass(eq=False, slots=True)
class Job:
    """Who asked for what, since `began` (loop time), and the task that sees it run.

    `fenced` is the mandate that ended it, if one did.
    """

    call: Call
    request: Request
    began: float
    task: "asyncio.Task[Outcome]"
    fenced: Mandate | None = None
    killed: bool = False

    def is_older_than(self, mandate: Mandate) -> bool:
        """Tell whether it runs in the name of a lower term of the same tier."""
        own = self.request.mandate
        return own is not None and own.tier == mandate.tier and own.term < mandate.term

    def fence(self, mandate: Mandate) -> None:
        """Have it killed because a higher term has called."""
        self.fenced = self.fenced or mandate
        self.kill()

    def kill(self) -> None:
        """Have the command killed; `task` is done when it is gone.

        Cancelled a second time it would be done before that.
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
        """Return what came of it, once it is over. Raises `Refused`."""
        if self.task.cancelled():
            if self.fenced is not None:
                raise Refused(
                    "Fenced",
                    f"killed: term {self.fenced.term} of tier {self.fenced.tier!r} has called here,"
                    " and this was of a lower one; its leader has been replaced",
                )
            raise Refused("Ended", "killed, because the agent ends")
        try:
            outcome = self.task.result()
        except (OSError, GuardError) as error:
            raise Refused("NotStarted", str(error)) from None
        if (refusal := self.refusal()) is not None:
            raise refusal
        if outcome.reason == "not started":
            raise Refused("NotStarted", outcome.detail)
        return outcome

    def told(self) -> str:
        """Return one line for the audit on how it ended."""
        if not self.task.cancelled():
            error = self.task.exception()
            return self.task.result().detail if error is None else f"not run: {error}"
        if self.fenced is not None:
            return f"killed, because term {self.fenced.term} has called"
        return f"killed: {self.call.gone or 'the agent ends'}"


async def end(jobs: Collection[Job]) -> None:
    """Kill the commands of jobs that are not over, and see them gone."""
    left = [job for job in jobs if not job.task.done()]
    for job in left:
        job.kill()
    if left:
        await asyncio.wait({job.task for job in left})
