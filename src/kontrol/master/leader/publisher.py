"""What the leader is about to do, for people: in its log, and in the store for every master.

The record in the store is under the leader's lease, so it goes with the leader. Only plans that
last are written: most are carried out in less time than writing them takes.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from kontrol.ensemble.canonical import JSON, canonical
from kontrol.ensemble.difference import Member, names
from kontrol.master.election.owned import OwnedKey
from kontrol.master.leader import policy

log = logging.getLogger(__name__)

Plan = policy.Idle | policy.Wait | policy.Run

_LASTING = 0.5  # seconds


class PlanPublisher:
    """The plan of one term, and its publication."""

    def __init__(self, key: OwnedKey, wall: Callable[[], str]) -> None:
        """`key` is where it is published; `wall` tells the date and time, RFC 3339."""
        self.plan: Plan = policy.Idle()
        self._key = key
        self._wall = wall
        self._lost: Sequence[Member] = ()
        self._of = 0
        self._peers: Sequence[str] = ()
        self._moved = asyncio.Event()

    def tell(
        self,
        plan: Plan,
        lost: Sequence[Member] = (),
        of: int = 0,
        peers: Sequence[str] = (),
    ) -> None:
        """Take note of the plan.

        `lost` are the pods lost of the `of` in the acknowledged list; `peers` are the masters that
        still have the acknowledged callback.
        """
        before = self.plan
        if (plan, peers) == (before, self._peers):
            return
        self.plan, self._lost, self._of, self._peers = plan, lost, of, peers
        self._moved.set()
        if not isinstance(plan, policy.Wait) or plan.hold not in ("gap", "brake", "rollout"):
            return
        if isinstance(before, policy.Wait) and before.hold == plan.hold:
            return
        seconds = plan.until - asyncio.get_running_loop().time()
        if plan.hold == "rollout":
            log.info(
                "the callback changed: waiting up to %.0f s for %s to have the new one",
                seconds,
                ", ".join(peers),
            )
        elif plan.hold == "brake":
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

    async def publish(self) -> None:
        """Keep the plan in the store up to date, until cancelled. Raises as `OwnedKey.put`."""
        written: JSON = None
        while True:
            plan = self._public()
            if plan != written:
                await self._key.put(canonical({**plan, "at": self._wall()}))
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
        return {
            **told,
            "lost": [names([m]) for m in self._lost[:20]],
            "of": self._of,
            "peers": list(self._peers[:20]),
        }
