"""What a client asks of the model: each request as a value, for a network to look at."""

from dataclasses import dataclass

from kontrol.store.protocol import Compare, Op, Range


@dataclass(frozen=True, slots=True)
class Txn:
    """A transaction, as `Store.txn` takes it."""

    compares: tuple[Compare, ...]
    then: tuple[Op, ...]
    otherwise: tuple[Op, ...] = ()

    @property
    def writes(self) -> bool:
        """Whether either branch would write."""
        return any(not isinstance(op, Range) for op in (*self.then, *self.otherwise))


@dataclass(frozen=True, slots=True)
class Grant:
    """Create a lease of `ttl` seconds."""

    ttl: int


@dataclass(frozen=True, slots=True)
class Refresh:
    """Refresh a lease."""

    lease: int


@dataclass(frozen=True, slots=True)
class Remaining:
    """Ask for a lease's remaining time."""

    lease: int


@dataclass(frozen=True, slots=True)
class Revoke:
    """End a lease."""

    lease: int


@dataclass(frozen=True, slots=True)
class Alarms:
    """Ask for the active alarms."""


@dataclass(frozen=True, slots=True)
class Compact:
    """Forget the history before `revision`."""

    revision: int


Request = Range | Txn | Grant | Refresh | Remaining | Revoke | Alarms | Compact
