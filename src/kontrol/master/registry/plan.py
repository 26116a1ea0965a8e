"""From decisions to one transaction: what it compares, what it writes, which numbers it gives.

Pure. Every decision is guarded by the revisions it was made on, so the transaction either does
all that was decided, or nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from kontrol.ensemble.pod import Keepalive, Pod
from kontrol.master.records.keys import Keys
from kontrol.master.records.pods import Live, Seat
from kontrol.master.registry.admission import (
    Decision,
    Join,
    Leave,
    Nothing,
    Refresh,
    Refuse,
    View,
    Write,
)
from kontrol.store.protocol import Compare, Delete, Op, Put


@dataclass(frozen=True, slots=True)
class Counter:
    """The next sequence number, and its revision in the store (0: never written)."""

    next: int = 0
    revision: int = 0


@dataclass(slots=True)
class Plan:
    """A transaction under construction."""

    keys: Keys
    counter: Counter
    compares: list[Compare] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    given: int = 0

    def add(
        self,
        record: Keepalive,
        view: View,
        decision: Decision,
        lease: int,
        *,
        sender: str | None = None,
    ) -> int | None:
        """Take one decision in; returns the pod's number, if it has one. `lease` is a join's."""
        match decision:
            case Refresh(live):
                return live.pod.seq
            case Write(pod, live):
                self._as_read(record.key, view)
                self._put(pod, live.lease, view, sender)
                return pod.seq
            case Join(_, seq, moved, bury):
                pod = Pod.of(record, seq if seq is not None else self._number())
                self._as_read(record.key, view)
                self._put(pod, lease, view, sender)
                self._put_out(moved, view)
                if bury is not None:
                    self.ops.append(Put(self.keys.old_seat(pod.key, bury.seq), bury.encode()))
                return pod.seq
            case Leave(seat, live):
                self._as_read(record.key, view)
                self.ops.append(Put(self.keys.seat(record.key), seat.encode()))
                if live is not None:
                    self.ops.append(Delete(self.keys.pod(record.key)))
                return seat.seq
            case Nothing() | Refuse():
                return None

    @property
    def clashes(self) -> bool:
        """Whether a key is written twice, which the store refuses."""
        keys = [op.key for op in self.ops]
        return len(keys) != len(set(keys))

    def close(self) -> None:
        """Raise the counter, if numbers were given."""
        if self.given:
            self.compares.append(Compare(self.keys.counter, "mod", "=", self.counter.revision))
            number = self.counter.next + self.given
            self.ops.append(Put(self.keys.counter, str(number).encode()))

    def _number(self) -> int:
        self.given += 1
        return self.counter.next + self.given - 1

    def _unmoved(self, live: Live) -> None:
        self.compares.append(Compare(self.keys.pod(live.pod.key), "mod", "=", live.revision))

    def _as_read(self, key: str, view: View) -> None:
        self.compares += [
            Compare(self.keys.pod(key), "mod", "=", view.live_revision),
            Compare(self.keys.seat(key), "mod", "=", view.seat_revision),
        ]

    def _put(self, pod: Pod, lease: int, view: View, sender: str | None) -> None:
        self.ops += [
            Put(self.keys.pod(pod.key), pod.encode(), lease),
            Put(self.keys.seat(pod.key), Seat.of(pod, view.seat, sender=sender).encode()),
        ]

    def _put_out(self, moved: Iterable[Live], view: View) -> None:
        for other in moved:
            self._unmoved(other)
            seat = Seat.of(other.pod, view.seats.get(other.pod.key), left=True)
            self.ops += [
                Delete(self.keys.pod(other.pod.key)),
                Put(self.keys.seat(other.pod.key), seat.encode()),
            ]
