"""What Kontrol expects of its store: the part of etcd v3's semantics that it relies on.

`kontrol.store.etcd` implements it on etcd, and `tests/support/memory` is a faithful model for tests
and the simulation. One contract suite (`tests/contract`) runs against both.

The rules that a caller may rely on:

* Every write gets a *revision*, one number for the whole store that only rises. All writes of one
  transaction share it.
* `range` and `txn` are linearizable: they see every write acknowledged before they were sent.
* A write that raised `Unavailable` was not done. One that raised `Ambiguous` may have been done:
  read again before you conclude anything.
* A key put under a lease is deleted, in one revision, when the lease expires or is revoked.
* A watch delivers every event from its start revision, once, in order of revision, whatever
  happens to connections and members; or it raises. It never skips silently.
* Every wait is bounded by the store's own timeout; no call hangs.
"""

import operator
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Literal, Protocol


class StoreError(Exception):
    """The root of the errors that a store raises."""


class Unavailable(StoreError):
    """The store could not be reached or has no quorum. Nothing was done."""


class Ambiguous(StoreError):
    """The answer was lost: a write may or may not have been done. Read to find out."""


class NoSpace(Ambiguous):
    """The store's database is over its quota (etcd's NOSPACE alarm) and accepts no more writes.

    The write that crossed the quota was done, and got this answer; later ones were not done.
    Reads and lease refreshes go on.
    """


class Compacted(StoreError):
    """The requested revision is compacted; `revision` is the oldest one left, 0 if unknown."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"history before revision {revision} is compacted: read everything again")
        self.revision = revision


class Restored(StoreError):
    """The store was restored or replaced: another cluster id, or a lower revision."""


class LeaseGone(StoreError):
    """The lease is unknown: expired, revoked, or never granted. Nothing was done."""


class Denied(StoreError):
    """The store refuses our credentials, or our user lacks a permission. Nothing was done."""


class TooLarge(StoreError):
    """The request is over the store's limits. Nothing was done."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header of every answer: the cluster's id (0 if unknown) and its revision then."""

    cluster: int
    revision: int


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key at one revision. `lease` is 0 without one; `version` counts puts since creation."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int = 1
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Range:
    """Read `key`, or every key that starts with `key` if `prefix`, in ascending order of key.

    `limit` bounds the answer (0: no bound); `revision` reads the past (0: now); `keys_only` leaves
    values empty; `descending` reverses the order.
    """

    key: str
    prefix: bool = False
    limit: int = 0
    revision: int = 0
    keys_only: bool = False
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Put:
    """Set `key`, under `lease` unless that is 0: then the key has no lease any more."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete `key`, or every key that starts with it if `prefix`; absent keys are no error."""

    key: str
    prefix: bool = False


Op = Range | Put | Delete

_OPERATORS: Final[dict[str, Callable[[int, int], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition on one key: its create or mod revision (0: absent), version, or lease."""

    key: str
    target: Literal["create", "mod", "version", "lease"]
    op: Literal["=", "!=", "<", ">"]
    operand: int

    def holds(self, kv: KeyValue | None) -> bool:
        """Tell whether it holds for the key's present value, None if the key is absent."""
        actual = {
            "create": kv.create_revision if kv else 0,
            "mod": kv.mod_revision if kv else 0,
            "version": kv.version if kv else 0,
            "lease": kv.lease if kv else 0,
        }[self.target]
        return _OPERATORS[self.op](actual, self.operand)


@dataclass(frozen=True, slots=True)
class RangeResult:
    """The keys found. `more` says that `limit` cut the answer short; `count` is without a limit."""

    header: Header
    kvs: tuple[KeyValue, ...]
    more: bool
    count: int


@dataclass(frozen=True, slots=True)
class TxnResult:
    """Whether the compares held, and a result per operation of the branch that was done.

    `results[i]` is a `RangeResult` for a `Range`, the number of keys deleted for a `Delete`, and
    None for a `Put`. `header.revision` is the transaction's own revision if it wrote.
    """

    header: Header
    succeeded: bool
    results: tuple[RangeResult | int | None, ...]

    def range(self, i: int) -> RangeResult:
        """Return `results[i]`, which must be that of a `Range`."""
        result = self.results[i]
        assert isinstance(result, RangeResult), f"operation {i} is not a range: {result!r}"  # noqa: S101
        return result


@dataclass(frozen=True, slots=True)
class Lease:
    """A granted lease. `ttl` in seconds is the store's choice, at least what was requested."""

    id: int
    ttl: int


@dataclass(frozen=True, slots=True)
class Event:
    """One change. A delete's `kv` has an empty value, and the revision of the deletion as mod."""

    type: Literal["put", "delete"]
    kv: KeyValue


@dataclass(frozen=True, slots=True)
class Batch:
    """All watched events of one or more whole revisions; none if it only confirms.

    `confirmed` is the loop time, in seconds, of the newest question to the store whose answer
    showed that the watch was not behind when it was sent; minus infinity before the first. Every
    event up to then is in this batch or an earlier one.
    """

    events: tuple[Event, ...]
    confirmed: float


class Watch(Protocol):
    """An open watch: iterate to receive. It ends only when it raises or is closed."""

    def __aiter__(self) -> AsyncIterator[Batch]:
        """Iterate over batches.

        Raises `Compacted` if events from the start revision on are gone, `Restored` if the store
        was replaced or lost revisions that were already delivered, `Denied` if it refuses us.
        A lost connection is resumed.
        """
        ...

    async def confirm(self) -> None:
        """Have the store confirm this watch; a `Batch` with the confirmation follows."""
        ...


class Store(Protocol):
    """A client of one store cluster. One instance serves any number of concurrent tasks."""

    async def range(self, request: Range) -> RangeResult:
        """Read. Raises `Unavailable`, `Compacted`, `Denied`; `Restored` for a future revision."""
        ...

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        """Do `then` if all compares hold, else `otherwise`, atomically; at most 128 of each.

        Raises `Unavailable`, `Ambiguous` (only if a branch writes; `NoSpace` is one), `LeaseGone`,
        `TooLarge`, `Denied`; `ValueError` if a branch writes a key twice.
        """
        ...

    async def grant(self, ttl: int) -> Lease:
        """Create a lease of at least `ttl` seconds. Raises `Unavailable`, `Denied`, `NoSpace`."""
        ...

    def refresh(self, lease: int) -> Awaitable[int]:
        """Refresh a lease; returns its seconds left, 0 if the lease is gone.

        Concurrent refreshes share streams. A future, in place of a coroutine, saves its caller a
        task. Raises `Unavailable`, possibly before there is anything to await.
        """
        ...

    async def remaining(self, lease: int) -> tuple[int, int]:
        """Return the lease's whole seconds left, and those granted; both 0 if it is gone.

        This does not refresh it.
        """
        ...

    async def revoke(self, lease: int) -> None:
        """End the lease and delete its keys; a lease already gone is no error."""
        ...

    async def alarms(self) -> tuple[str, ...]:
        """Return the names of the active alarms: `NOSPACE`, `CORRUPT`. Raises `Unavailable`.

        Empty if there are none, or if the store does not let us see them.
        """
        ...

    def watch(
        self, key: str, *, prefix: bool = False, start: int, cluster: int = 0
    ) -> AbstractAsyncContextManager[Watch]:
        """Watch from revision `start` on (a read's revision + 1), in cluster `cluster` if given."""
        ...

    async def close(self) -> None:
        """Close connections and end open watches. Leases stay."""
        ...
