"""What the leader is about to do, told to people: in its log, and in the store for every master.

The notice in the store is under the leader's lease, so it goes with the leader. It is written only
of what lasts: most plans are carried out in less time than telling them takes.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from kontrol.ensemble.canonical import JSON, canonical
from kontrol.ensemble.difference import Member, names
from kontrol.master.election.term import Term
from kontrol.master.leader import policy
from kontrol.master.records.keys import Keys
from kontrol.store.protocol import Put

log = logging.getLogger(__name__)

Plan = policy.Idle | policy.Wait | policy.Run

_LASTING = 0.5  # seconds


class Notice:
    """The leader's plan, and its publication."""

    def __init__(self, keys: Keys, wall: Callable[[], str]) -> None:
        """`wall` tells the date and time, RFC 3339."""
        self.plan: Plan = policy.Idle()
        self._keys = keys
        self._wall = wall
        self._lost: Sequence[Member] = ()
        self._of = 0
        self._moved = asyncio.Event()

    @property
    def held(self) -> str:
        """What holds the callback: damper, retry, gap or brake; empty if nothing does."""
        return self.plan.hold if isinstance(self.plan, policy.Wait) else ""

    def tell(self, plan: Plan, lost: Sequence[Member] = (), of: int = 0) -> None:
        """Take note of the plan; `lost` are the pods lost of the `of` in the acknowledged list."""
        before = self.plan
        if plan == before:
            return
        self.plan, self._lost, self._of = plan, lost, of
        self._moved.set()
        if not isinstance(plan, policy.Wait) or plan.hold not in ("gap", "brake"):
            return
        if isinstance(before, policy.Wait) and before.hold == plan.hold:
            return
        seconds = plan.until - asyncio.get_running_loop().time()
        if plan.hold == "brake":
            log.error(
                "BRAKE: %d of %d pods are lost (%s); the callback is held for %.0f s more, until "
                "they return, or until `kontrol release`",
                len(lost),
                of,
                names(lost),
                seconds,
            )
        else:
            log.warning(
                "%d of %d pods are missing (%s) after a time without masters or store: waiting "
                "%.0f s for them",
                len(lost),
                of,
                names(lost),
                seconds,
            )

    async def publish(self, term: Term) -> None:
        """Keep the notice in the store up to date, until cancelled. Raises as `Term.insist`."""
        written: JSON = None
        while True:
            plan = self._public()
            if plan != written:
                value = canonical({**plan, "at": self._wall()})
                await term.insist([Put(self._keys.plan, value, term.lease)])
                written = plan
            await self._moved.wait()
            await asyncio.sleep(_LASTING)
            self._moved.clear()

    def _public(self) -> dict[str, JSON]:
        told: dict[str, JSON] = {"what": "idle", "reason": None, "hold": None, "seconds": None}
        match self.plan:
            case policy.Run(reason, _):
                told |= {"what": "run", "reason": reason}
            case policy.Wait(reason, until, hold):
                left = round(until - asyncio.get_running_loop().time(), 1)
                told |= {"what": "wait", "reason": reason, "hold": hold, "seconds": left}
            case policy.Idle():
                pass
        return {**told, "lost": [names([m]) for m in self._lost[:20]], "of": self._of}
