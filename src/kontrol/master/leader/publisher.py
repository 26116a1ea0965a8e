"""What the leader is about to do, for people: in its log, and in the store for every master.

The record in the store is under the leader's lease, so it is gone when the leader is. Only plans
that last are written: most are carried out in less time than it takes to write them. The record
also names the pods that are lost and not acted on yet, whatever the plan is.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from kontrol.ensemble.canonical import JSON, canonical
from kontrol.ensemble.ensemble import Member, names
from kontrol.master.leader import policy
from kontrol.master.term import OwnedKey
from kontrol.store.protocol import Ambiguous, Unavailable

log = logging.getLogger(__name__)

Plan = policy.Idle | policy.Wait | policy.Run

Lost = Callable[[], Awaitable[tuple[Sequence[Member], int]]]
"""Returns which pods are lost, and of how many. Raises `Unavailable` and `Ambiguous`."""

_LASTING = 0.5  # seconds
_NAMED = 20  # pods and masters


class PlanPublisher:
    """The plan of one term, and its publication."""

    def __init__(
        self,
        key: OwnedKey,
        wall: Callable[[], str],
        find_lost: Lost,
        acknowledged: Callable[[], int],
    ) -> None:
        """`key` is where to publish; `wall` returns the date and time, RFC 3339.

        `acknowledged` returns the number of the last acknowledged run.
        """
        self.plan: Plan = policy.Idle()
        self._key = key
        self._wall = wall
        self._find_lost = find_lost
        self._acknowledged = acknowledged
        self._lost: Sequence[Member] = ()
        self._of = 0
        self._peers: Sequence[str] = ()
        self._moved = asyncio.Event()

    def update(
        self,
        plan: Plan,
        lost: Sequence[Member] = (),
        of: int = 0,
        peers: Sequence[str] = (),
    ) -> None:
        """Set the plan, log it if it is a new wait, and have it published if it lasts.

        `lost` are the pods that are lost of the `of` in the acknowledged list. `peers` are the ids
        of masters that still have the acknowledged callback.
        """
        before = self.plan
        if (plan, peers) == (before, self._peers):
            return
        self.plan, self._lost, self._of, self._peers = plan, lost, of, peers
        self._moved.set()
        logged = ("damper", "gap", "brake", "rollout")
        if not isinstance(plan, policy.Wait) or plan.hold not in logged:
            return
        if isinstance(before, policy.Wait) and before.hold == plan.hold:
            return
        seconds = plan.until - asyncio.get_running_loop().time()
        if plan.hold == "damper":
            if left := round(max(0.0, seconds), 1):
                log.info("change seen; waiting %g s for quiet (KONTROL_DAMPER)", left)
        elif plan.hold == "rollout":
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
                "%d of %d pods are missing (%s) after an outage of masters or store: waiting "
                "%.0f s for them",
                len(lost),
                of,
                names(lost),
                seconds,
            )

    def changed(self) -> None:
        """Note that pods changed, and so perhaps which are lost."""
        self._moved.set()

    async def publish(self) -> None:
        """Keep the plan in the store up to date, until cancelled. Raises as `OwnedKey.put`."""
        written: object = None
        while True:
            plan, peers, run = self.plan, self._peers, self._acknowledged()
            lost, of = (self._lost, self._of) if self._lost else await self._losses()
            if (plan, peers, lost, of) != written:
                public = _public(plan, lost, of, peers)
                await self._key.put(canonical({**public, "acknowledged": run, "at": self._wall()}))
                written = plan, peers, lost, of
            await self._moved.wait()
            await asyncio.sleep(_LASTING)
            self._moved.clear()

    async def _losses(self) -> tuple[Sequence[Member], int]:
        """Return which pods are lost; none while the store does not answer."""
        try:
            lost, of = await self._find_lost()
        except (Unavailable, Ambiguous) as error:
            log.debug("which pods are lost is not published: %s", error)
            return (), 0
        return tuple(lost), of


def _public(plan: Plan, lost: Sequence[Member], of: int, peers: Sequence[str]) -> dict[str, JSON]:
    public: dict[str, JSON] = {"what": "idle", "reason": plan.reason, "hold": None, "seconds": None}
    match plan:
        case policy.Run():
            public |= {"what": "run"}
        case policy.Wait(_, until, hold):
            public |= {"what": "wait", "hold": hold, "seconds": _left(until)}
        case policy.Idle(_, until):
            public |= {"seconds": None if until is None else _left(until)}
    return {
        **public,
        "lost": [names([member]) for member in lost[:_NAMED]],
        "missing": len(lost),
        "of": of,
        "peers": list(peers[:_NAMED]),
    }


def _left(until: float) -> float:
    return round(until - asyncio.get_running_loop().time(), 1)
