"""What one tier may store, and how many new pods one address may bring: bounds against strangers.

A pod that is known is taken whatever the bounds: an ensemble that holds more than they allow (they
were lowered) keeps its pods, and only new identities are refused. What is large is refused too
where it would grow what is stored beyond the bound of bytes; its pod stays alive.

Pods and bytes are those of the mirror, and of what was written here since. New identities are
counted by this master alone, for each address in a bucket that is refilled evenly: as many at once
as in a minute. The default lets 20,000 pods behind one address (SNAT, or one host) start at once.
"""

import ipaddress
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field

from kontrol.master.mirror import Mirror
from kontrol.master.registry.admission import Decision, Join, Refuse, View, Write

SMALL_RECORD = 4096  # bytes: a pod that is known is always taken with that much
NAMES = ("TooManyPods", "TooManyBytes", "TooManyJoins")
_ADDRESSES = 10_000  # whose buckets are remembered
_MINUTE = 60.0
_WRITTEN = 10_000  # batches that the mirror does not show yet
_NAMED = 100  # addresses of which it is told how many keepalives were refused


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one tier may store, and one address may bring.

    The string below each field is its line in the published table of limits.
    """

    pods: int = 50_000
    """Pods of a tier, `KONTROL_MAX_PODS`; of new ones, one more is refused."""

    size: int = 1 << 30
    """Bytes of their records, `KONTROL_MAX_BYTES`."""

    joins: int = 30_000
    """New pods from one address in a minute, at one master, `KONTROL_MAX_JOINS`."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A keepalive of the pod `id`, of `size` bytes, from `address`, and what was decided on it."""

    id: str
    size: int
    address: str
    view: View
    decision: Decision


@dataclass(slots=True)
class Planned:
    """What the decisions of one batch add; `joins` are new identities by their origin."""

    pods: int = 0
    size: int = 0
    joins: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Limited:
    """A bound that was met: by keepalives refused as `name`, the last at the loop time `at`.

    `times` counts them, and `by` their addresses, in a row without a quiet minute; `why` is what
    the last one was told.
    """

    name: str
    times: int
    by: Counter[str]
    why: str
    at: float


class Buckets:
    """Lets each address do `most` things at once, and as many per minute."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._levels: OrderedDict[str, tuple[float, float]] = (
            OrderedDict()
        )  # what is left, and when

    def left(self, address: str, now: float) -> float:
        """Return how many an address may do at the time `now`, in seconds."""
        level, at = self._levels.get(address, (float(self._most), now))
        return min(self._most, level + (now - at) * self._most / _MINUTE)

    def take(self, address: str, times: int, now: float) -> None:
        """Note that it did so many. Who did nothing for the longest time is forgotten."""
        self._levels[address] = self.left(address, now) - times, now
        self._levels.move_to_end(address)
        if len(self._levels) > _ADDRESSES:
            self._levels.popitem(last=False)


class Quota:
    """Judges what keepalives would add to the store.

    `refused` counts refusals by their name, since the start.
    """

    def __init__(self, bounds: Bounds, mirror: Mirror) -> None:
        self.bounds = bounds
        self.refused: Counter[str] = Counter(dict.fromkeys(NAMES, 0))
        self._mirror = mirror
        self._buckets = Buckets(bounds.joins)
        self._written: deque[tuple[int, Planned]] = deque(maxlen=_WRITTEN)  # by revision
        self._limited: dict[str, Limited] = {}
        # Of a store that went back, the mirror may not see those revisions for a long time.
        mirror.cache.on_restore(lambda _: self._written.clear())

    def judge(self, asked: Asked, planned: Planned, now: float) -> Refuse | None:
        """Refuse a decision that would store too much; else add it to what is `planned`.

        While the mirror is not complete, nothing is known to be too much.
        """
        decision, view = asked.decision, asked.view
        if not isinstance(decision, Join | Write) or not self._mirror.cache.complete.is_set():
            return None
        join = decision if isinstance(decision, Join) else None
        new = join is not None and join.seq is None
        pods = int(join is not None and view.live is None and not join.moved)
        before = [live for live in (view.live, *view.elsewhere) if live is not None]
        growth = asked.size - sum(self._mirror.size_of(live.pod.key) for live in before)
        origin = origin_of(asked.address) if new else ""
        refusal = None
        if new and pods:
            refusal = self._too_many_pods(asked, planned)
        if refusal is None and growth > 0 and (new or asked.size > SMALL_RECORD):
            refusal = self._too_many_bytes(asked, planned, growth)
        if refusal is None and new:
            refusal = self._too_many_joins(asked, planned, origin, now)
        if refusal is not None:
            self._note(refusal, asked.address, now)
            return refusal
        planned.pods += pods
        planned.size += growth
        if new:
            planned.joins[origin] += 1
        return None

    def wrote(self, planned: Planned, revision: int, now: float) -> None:
        """Note that what was planned was written at `revision`."""
        self._written.append((revision, planned))
        for origin, times in planned.joins.items():
            self._buckets.take(origin, times, now)

    def limited(self, now: float) -> list[Limited]:
        """Return the bounds that were met within a minute."""
        return [each for each in self._limited.values() if now - each.at < _MINUTE]

    def _unseen(self) -> list[Planned]:
        """Return what was written here and is not in the mirror yet."""
        while self._written and self._written[0][0] <= self._mirror.cache.revision:
            self._written.popleft()
        return [planned for _, planned in self._written]

    def _too_many_pods(self, asked: Asked, planned: Planned) -> Refuse | None:
        most = self.bounds.pods
        pods = self._mirror.records + sum(each.pods for each in (*self._unseen(), planned))
        if pods < most:
            return None
        return Refuse(
            "TooManyPods",
            f"this tier has {pods} pods, and KONTROL_MAX_PODS allows {most}: pod {asked.id} is not "
            "taken; remove pods that do not belong here, or raise KONTROL_MAX_PODS on every master",
        )

    def _too_many_bytes(self, asked: Asked, planned: Planned, growth: int) -> Refuse | None:
        most = self.bounds.size
        size = self._mirror.size + sum(each.size for each in (*self._unseen(), planned))
        if size + growth <= most:
            return None
        lives = isinstance(asked.decision, Write)
        return Refuse(
            "TooManyBytes",
            f"the records of this tier's pods take {size} bytes, and KONTROL_MAX_BYTES allows "
            f"{most}: pod {asked.id} has {asked.size}, and "
            f"{'its change is not taken, though it is alive' if lives else 'it is not taken'}; "
            "make the payloads smaller, or raise KONTROL_MAX_BYTES on every master",
        )

    def _too_many_joins(
        self, asked: Asked, planned: Planned, origin: str, now: float
    ) -> Refuse | None:
        if self._buckets.left(origin, now) - planned.joins[origin] >= 1:
            return None
        return Refuse(
            "TooManyJoins",
            f"{origin or 'an unknown address'} reported {self.bounds.joins} new pods within a "
            f"minute, which is what KONTROL_MAX_JOINS allows one address: pod {asked.id} is not "
            "taken yet; ask again",
        )

    def _note(self, refusal: Refuse, address: str, now: float) -> None:
        """Note a refusal, for people."""
        self.refused[refusal.name] += 1
        before = self._limited.get(refusal.name)
        goes_on = before is not None and now - before.at < _MINUTE
        times, by = (before.times, before.by) if before is not None and goes_on else (0, Counter())
        if address in by or len(by) < _NAMED:
            by[address] += 1
        limited = Limited(refusal.name, times + 1, by, refusal.message, now)
        self._limited[refusal.name] = limited


def origin_of(address: str) -> str:
    """Return what counts as one address: an IPv4 address, or the /64 network of an IPv6 one."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((int(ip) >> 64 << 64, 64)))
