"""What the leader does for operators besides deciding on runs: release, roll back, forget, refuse.

Each request is answered once, under the term's fence (`requests.py`).
"""

import asyncio
from collections.abc import Callable

from kontrol.ensemble.holds import Brake
from kontrol.master.leader.execution import Asked
from kontrol.master.leader.forget import Forgetting
from kontrol.master.leader.ledger import Ledger
from kontrol.master.leader.parts import News, Tier
from kontrol.master.leader.policy import Wait
from kontrol.master.leader.requests import Answers, Pending
from kontrol.master.records.masters import OperatorAnswer
from kontrol.master.term import Term
from kontrol.store.protocol import Ambiguous, Unavailable


class OperatorActions:
    """Carries out and answers the requests of operators in one term."""

    def __init__(
        self,
        term: Term,
        tier: Tier,
        ledger: Ledger,
        *,
        brake: Brake,
        wall: Callable[[], str],
        news: News,
    ) -> None:
        """`wall` returns the date and time, RFC 3339; `news` is set when requests come."""
        self._ledger = ledger
        self._brake = brake
        self._wall = wall
        self._news = news
        self._answers = Answers(tier.requests, term)
        self._forgetting = Forgetting(term, tier, ledger, self._answers, wall)

    async def serve(self) -> None:
        """Carry out what operators asked for, apart from runs. Raises `Deposed`, `StoreError`."""
        for pending in self._answers.pending("release", "rollback", "forget"):
            try:
                match pending.request.kind:
                    case "release":
                        await self._release(pending)
                    case "rollback":
                        await self._roll_back(pending)
                    case _:
                        await self._forgetting.forget(pending)
            except (Unavailable, Ambiguous) as error:
                await self._news.retry(f"answer a request ({pending.request.kind})", error)

    async def decline(self) -> None:
        """Serve operators, and refuse runs, without a callback, until cancelled."""
        why = "KONTROL_CALLBACK is not set on the leader: there is nothing to run"
        while True:
            self._news.clear()
            await self.serve()
            for pending in self._answers.pending("run"):
                await self._answers.answer(pending, OperatorAnswer(why, refused=True))
            await self._news.wait()

    @property
    def run(self) -> Pending | None:
        """The oldest request for a run that is not answered yet."""
        return next(iter(self._answers.pending("run")), None)

    def asked(self, pending: Pending, group: asyncio.TaskGroup) -> Asked:
        """Return who asked for the run, and what answers once it starts, in a task of `group`."""

        def started(run: int) -> None:
            answer = OperatorAnswer(f"run {run} has started", run=run)
            group.create_task(self._answers.answer(pending, answer))

        return Asked(pending.request.by, started)

    async def refuse(self, pending: Pending, plan: Wait, lost: int, of: int) -> None:
        """Refuse a run that is held: `lost` pods of `of` are lost."""
        seconds = plan.until - asyncio.get_running_loop().time()
        why = f"held by the {plan.hold} for {seconds:.0f} s more: {lost} of {of} pods are lost"
        why += "; if they are gone for good, `kontrol release`" * (plan.hold == "brake")
        await self._answers.answer(pending, OperatorAnswer(why, refused=True))

    async def _release(self, pending: Pending) -> None:
        released = self._brake.release()
        what = "the brake is released" if released else "the brake holds nothing"
        await self._answers.answer(pending, OperatorAnswer(what))

    async def _roll_back(self, pending: Pending) -> None:
        number = pending.request.run or 0
        state = await self._ledger.kept(number)
        if state is None:
            why = await self._ledger.why_not_kept(number)
            await self._answers.answer(pending, OperatorAnswer(why, refused=True))
            return

        def done(run: int) -> OperatorAnswer:
            return OperatorAnswer(f"run {run} restored the state of run {number}", run=run)

        run = await self._ledger.roll_back(
            number,
            state,
            started=self._wall(),
            by=pending.request.by,
            answer=lambda run: self._answers.part(pending, done(run)),
        )
        expired = OperatorAnswer("it expired before it was done", refused=True)
        self._answers.answered(pending, expired if run is None else done(run))
