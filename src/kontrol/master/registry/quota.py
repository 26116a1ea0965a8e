"""What one tier may store, and how many new pods one address may report: bounds on unknown clients.

A pod that is known is accepted whatever the bounds. An ensemble that holds more than they allow
(they were lowered) keeps its pods, and only new identities are refused. A large record is refused
too where it would take the records beyond the bound of bytes; its pod stays alive.

Pods and bytes are those of the mirror, and of what was written here since. New identities are
counted by this master alone, for each address in a bucket that is refilled evenly and holds as many
as a minute brings. The default lets 20,000 pods behind one address (SNAT, or one host) start at the
same time.
"""

import asyncio
import contextlib
import ipaddress
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from kontrol.master.mirror import Mirror
from kontrol.master.registry.admission import Decision, Join, Refuse, View, Write
from kontrol.ratelimit import RateLimiter

SMALL_RECORD = 4096  # bytes: a known pod may always have a record of that size
NAMES = ("TooManyPods", "TooManyBytes", "TooManyJoins")
_ADDRESSES = 10_000  # whose buckets are remembered
_MINUTE = 60.0
_WRITTEN = 10_000  # batches that the mirror does not show yet
_NAMED = 100  # addresses whose refused keepalives are counted one by one


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one tier may store, and one address may report.

    The string below each field is its line in the published table of limits.
    """

    pods: int = 50_000
    """Pods of a tier, `KONTROL_MAX_PODS`; of new ones, one more is refused."""

    size: int = 1 << 30
    """Bytes of their records, `KONTROL_MAX_BYTES`."""

    joins: int = 30_000
    """New pods from one address in a minute, at one master, `KONTROL_MAX_JOINS`."""


@dataclass(frozen=True, slots=True)
class Addition:
    """What a keepalive of the pod `id`, from `address`, would store: a record of `size` bytes."""

    id: str
    size: int
    address: str
    view: View
    decision: Decision


@dataclass(slots=True, eq=False)  # equal plans are not the same
class Planned:
    """What the decisions of one batch add; `joins` are new identities by their origin."""

    pods: int = 0
    size: int = 0
    joins: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Limited:
    """A bound that was met: by keepalives refused as `name`, the last at the loop time `at`.

    `times` counts them, and `by` their addresses, since the last minute without any. `why` is the
    message of the last one.
    """

    name: str
    times: int
    by: Counter[str]
    why: str
    at: float


class Quota:
    """Judges what keepalives would add to the store.

    `refused` counts refusals by their name, since the start.
    """

    def __init__(self, bounds: Bounds, mirror: Mirror, *, news: asyncio.Event) -> None:
        """`news` is set when a keepalive is refused."""
        self.bounds = bounds
        self.refused: Counter[str] = Counter(dict.fromkeys(NAMES, 0))
        self._mirror = mirror
        self._news = news
        self._joins = RateLimiter(bounds.joins / _MINUTE, bounds.joins, _ADDRESSES)
        self._written: deque[tuple[int, Planned]] = deque(maxlen=_WRITTEN)  # by revision
        self._plans: list[Planned] = []
        self._limited: dict[str, Limited] = {}
        # After a restore of the store, the mirror may not see those revisions for a long time.
        mirror.cache.on_restore(lambda _: self._written.clear())

    @contextlib.contextmanager
    def plan(self) -> Iterator[Planned]:
        """Return an empty plan, which counts in every judgement until the block ends."""
        planned = Planned()
        self._plans.append(planned)
        try:
            yield planned
        finally:
            self._plans.remove(planned)

    def judge(self, addition: Addition, planned: Planned, now: float) -> Refuse | None:
        """Refuse a decision that would store too much; else add it to what is `planned`.

        `planned` is what `plan` returned, and its block has not ended.

        While the mirror is not complete, nothing is known to be too much.
        """
        decision, view = addition.decision, addition.view
        if not isinstance(decision, Join | Write) or not self._mirror.cache.complete.is_set():
            return None
        join = decision if isinstance(decision, Join) else None
        new = join is not None and join.seq is None
        pods = int(join is not None and view.live is None and not join.moved)
        before = [live for live in (view.live, *view.elsewhere) if live is not None]
        growth = addition.size - sum(self._mirror.size_of(live.pod.key) for live in before)
        origin = origin_of(addition.address) if new else ""
        refusal = None
        unseen = self._unseen()
        if new and pods:
            refusal = self._too_many_pods(addition, unseen)
        if refusal is None and growth > 0 and (new or addition.size > SMALL_RECORD):
            refusal = self._too_many_bytes(addition, unseen, growth)
        if refusal is None and new:
            refusal = self._too_many_joins(addition, origin, now)
        if refusal is not None:
            self._note(refusal, addition.address, now)
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
            self._joins.take(origin, now, times)

    def limited(self, now: float) -> list[Limited]:
        """Return the bounds that were met within a minute."""
        return [each for each in self._limited.values() if now - each.at < _MINUTE]

    def _unseen(self) -> list[Planned]:
        """Return what is planned, or was written here and the mirror does not show yet."""
        shown = self._mirror.cache.revision
        while self._written and self._written[0][0] <= shown:
            self._written.popleft()
        # Batches end in any order, so a later one may be shown before an earlier one.
        written = [planned for revision, planned in self._written if revision > shown]
        return written + self._plans

    def _too_many_pods(self, addition: Addition, unseen: list[Planned]) -> Refuse | None:
        most = self.bounds.pods
        pods = self._mirror.records + sum([each.pods for each in unseen])
        if pods < most:
            return None
        return Refuse(
            "TooManyPods",
            f"this tier has {pods} pods, and KONTROL_MAX_PODS allows {most}: pod {addition.id} is "
            "not accepted; remove pods that do not belong here, or raise KONTROL_MAX_PODS on every "
            "master",
        )

    def _too_many_bytes(
        self, addition: Addition, unseen: list[Planned], growth: int
    ) -> Refuse | None:
        most = self.bounds.size
        size = self._mirror.size + sum([each.size for each in unseen])
        if size + growth <= most:
            return None
        lives = isinstance(addition.decision, Write)
        what = "its change is not accepted, though it is alive" if lives else "it is not accepted"
        return Refuse(
            "TooManyBytes",
            f"the records of this tier's pods take {size} bytes, and KONTROL_MAX_BYTES allows "
            f"{most}: pod {addition.id} has {addition.size}, and {what}; make the payloads "
            "smaller, or raise KONTROL_MAX_BYTES on every master",
        )

    def _too_many_joins(self, addition: Addition, origin: str, now: float) -> Refuse | None:
        planned = sum(each.joins[origin] for each in self._plans)
        if self._joins.left(origin, now) - planned >= 1:
            return None
        return Refuse(
            "TooManyJoins",
            f"{origin or 'an unknown address'} reported {self.bounds.joins} new pods within a "
            f"minute, which is what KONTROL_MAX_JOINS allows one address: pod {addition.id} is not "
            "accepted yet; try again",
        )

    def _note(self, refusal: Refuse, address: str, now: float) -> None:
        """Note a refusal, for people to see."""
        self._news.set()
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
