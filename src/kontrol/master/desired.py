"""The desired state on one master: followed by a watch, and changed by operators.

Any master changes it, with or without a leader. A change compares the revision of the whole
document with the one that was read, so of changes that race, each is made on top of the other, and
of two that expect the same value, one is made. Every write has an id, which the document keeps: so
a master whose answer was lost reads whether its change was made, and makes none twice.

Values may be secret: no log and no error has them.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kontrol.ensemble.desired import Expected, SpecChanges
from kontrol.master.records.desired import Desired, Logged
from kontrol.master.records.records import Records
from kontrol.master.watchcache import WatchCache
from kontrol.store.protocol import (
    Ambiguous,
    Compare,
    Event,
    NoSpace,
    Put,
    Range,
    Store,
    StoreError,
    Unavailable,
)

log = logging.getLogger(__name__)


class NotAsExpected(Exception):
    """The value was not the expected one; nothing was changed. The text names the key."""


class Unreadable(Exception):
    """The desired state in the store is damaged; nothing was changed. The text has the fix."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The desired state at a revision of the store, 0 if it was never set; None if damaged."""

    revision: int = 0
    desired: Desired | None = field(default_factory=Desired)

    @property
    def document(self) -> bytes | None:
        """The JSON object for the callback; None if it is not known."""
        return None if self.desired is None else self.desired.document

    def since(self, marks: Mapping[str, str] | None) -> SpecChanges:
        """Return what changed since an acknowledged run; nothing if that cannot be known."""
        return SpecChanges() if self.desired is None else self.desired.since(marks or {})


class DesiredState:
    """The desired state of a tier; `cache.run` must be running.

    `seen` is the newest that the watch delivered.
    """

    def __init__(
        self,
        store: Store,
        records: Records,
        *,
        master: str,
        silence: float,
        wall: Callable[[], str],
        rng: random.Random,
    ) -> None:
        """`master` is the id of this one, which the ids of its writes begin with.

        `silence` as for a `WatchCache`; `wall` returns the date and time, RFC 3339.
        """
        self.seen = Seen()
        self._store = store
        self._records = records
        self._key = records.keys.spec
        self._master = master
        self._wall = wall
        self._rng = rng
        self.cache = WatchCache(store, self._key, silence=silence)
        self.cache.listen(self._take)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` when it changed."""
        self.cache.listen(lambda _: listener())

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.kv.key != self._key:
                continue
            if event.type == "put":
                kv = event.kv
                self.seen = Seen(kv.mod_revision, self._records.desired(kv))
            else:
                self.seen = Seen()

    async def read(self) -> Seen:
        """Read it from the store. Raises `StoreError`."""
        kvs = (await self._store.range(Range(self._key))).kvs
        return Seen(kvs[0].mod_revision, self._records.desired(kvs[0])) if kvs else Seen()

    async def change(
        self,
        key: str,
        value: bytes | None,
        *,
        by: str,
        expected: Expected | None = None,
        timeout: float,
    ) -> bool:
        """Set a key to a value in canonical form, or unset it with None; at most `timeout` seconds.

        Returns False if there was nothing to change. Raises `NotAsExpected`, `Unreadable`,
        `BadSetting` for a limit, `StoreError`; `Ambiguous` if it may have been done.
        """
        id_ = f"{self._master} {self._rng.getrandbits(64):016x}"
        change = Logged(id_, key, by, self._wall(), unset=value is None)
        attempt = _Attempt(change, value, expected)
        try:
            async with asyncio.timeout(timeout):
                return await self._insist(attempt)
        except (TimeoutError, StoreError) as error:
            if attempt.sent:
                raise Ambiguous(
                    f"it did not confirm the change of {key!r}, which may have been made: read it "
                    "before you repeat it"
                ) from None
            if isinstance(error, StoreError):
                raise
            raise Unavailable("it did not answer in time; nothing was changed") from None

    async def _insist(self, attempt: "_Attempt") -> bool:
        delay = 0.0
        while True:
            try:
                done = await self._try(attempt)
                if done is not None:
                    return done
                continue  # another change came first
            except NoSpace as error:
                if attempt.full:
                    raise
                attempt.full = error  # a write that crosses the quota is done: read whether this is
                continue
            except (Ambiguous, Unavailable) as error:
                if not attempt.sent:
                    raise
                attempt.lost = True
                key = attempt.change.key
                log.warning("the change of %r in the desired state waits for etcd: %s", key, error)
            delay = min(1.0, delay * 2 or 0.05)
            await asyncio.sleep(delay)

    async def _try(self, attempt: "_Attempt") -> bool | None:
        """Read, and make the change once; None if another one came between."""
        change, seen = attempt.change, await self.read()
        if seen.desired is None:
            raise Unreadable(
                f"the desired state in etcd ({self._key}) is damaged, as the master's log says. "
                "Restore it from an export, or delete it and set every key again"
            )
        if not (attempt.sent and seen.desired.logged(change.id)):
            if seen.revision != attempt.revision:
                attempt.sent = False  # what was sent compares another revision
            if attempt.full is not None:
                attempt.sent = attempt.lost
                raise attempt.full
            made = _changed(seen.desired, attempt)
            if made is None:
                return False
            if not await self._write(attempt, seen, made):
                return None
        did = "unset" if change.unset else "set"
        log.info("the desired state: %s %s %r", change.by, did, change.key)
        return True

    async def _write(self, attempt: "_Attempt", seen: Seen, made: Desired) -> bool:
        unmoved = Compare(self._key, "mod", "=", seen.revision)
        before, attempt.sent, attempt.revision = attempt.sent, True, seen.revision
        try:
            return (await self._store.txn([unmoved], [Put(self._key, made.encode())])).succeeded
        except Ambiguous:
            raise
        except StoreError:  # this write was not done
            attempt.sent = before
            raise


@dataclass(slots=True)
class _Attempt:
    """A change under way. `sent`: a write of it, at `revision`, may have been done, or still be.

    `full` is why it was not, the last time; `lost`: an answer was lost before.
    """

    change: Logged
    value: bytes | None
    expected: Expected | None
    sent: bool = False
    revision: int = -1
    full: NoSpace | None = None
    lost: bool = False


def _changed(now: Desired, attempt: _Attempt) -> Desired | None:
    """Return the state with a change, None if it is so already.

    Raises `NotAsExpected` and `BadSetting`.
    """
    change, value, expected = attempt.change, attempt.value, attempt.expected
    before = now.values.get(change.key)
    has = None if before is None else before.value
    if expected is not None and has != expected.value:
        what = "has another value than the expected one" if before else "is not set"
        if expected.value is None:
            what = "is set"
        raise NotAsExpected(
            f"{change.key!r} {what}: nothing was changed. `kontrol get {change.key}` shows it"
        )
    if has == value:
        return None
    return now.unset(change) if value is None else now.set(value, change)
