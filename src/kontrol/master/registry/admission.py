"""What to do with a keepalive: a pure decision on what the store holds for its key and its id.

The decision never looks at time, except for what its caller measured: whether those who stand in
the way of a keepalive are silent, while its sender keeps asking.

Invariant: of one identity, no older record is written over a newer while the process that reported
the newer one is heard. (A process with a higher nonce may be gone while one with a lower lives: two
ran under one identity, or somebody forged a record.)

From decisions to one transaction: what it compares, what it writes, which numbers it gives.

Pure. Every decision is guarded by the revisions it was made on, so the transaction either does
all that was decided, or nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kontrol.ensemble.pod import Keepalive, Pod, comes_before
from kontrol.master.records.keys import Keys
from kontrol.master.records.pods import Live, Registration
from kontrol.store.protocol import Compare, Delete, Op, Put


@dataclass(frozen=True, slots=True)
class View:
    """What the store holds for one keepalive: at its key, and elsewhere under its id.

    The revisions are of what stands in the store, 0 for nothing, also where it could not be read.
    `registrations` are those of `elsewhere`, by key.
    """

    live: Live | None = None
    live_revision: int = 0
    registration: Registration | None = None
    registration_revision: int = 0
    elsewhere: Sequence[Live] = ()
    registrations: Mapping[str, Registration] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refresh:
    """Nothing new: start the lease's time anew."""

    live: Live


@dataclass(frozen=True, slots=True)
class Write:
    """A changed record of a live pod: write it under the same lease and number."""

    pod: Pod
    live: Live


@dataclass(frozen=True, slots=True)
class Join:
    """A pod to take in. `seq` is its earlier number, None for a new one.

    `moved` are its own records at earlier addresses, which count as having left; `bury` is the
    tombstone of an earlier identity at the key, to be kept elsewhere.
    """

    record: Keepalive
    seq: int | None
    moved: Sequence[Live] = ()
    bury: Registration | None = None


@dataclass(frozen=True, slots=True)
class Leave:
    """A farewell: delete the record, and write the tombstone `registration`."""

    registration: Registration
    live: Live | None


@dataclass(frozen=True, slots=True)
class Nothing:
    """A farewell of somebody who is not here."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Not taken: the error's name and message for the agent."""

    name: str
    message: str


Decision = Refresh | Write | Join | Leave | Nothing | Refuse


def decide(
    record: Keepalive, view: View, *, unheard: bool = False, new_lease: bool = False
) -> Decision:
    """Judge one keepalive.

    `unheard`: whoever reported the records that stand in its way is silent, and this one keeps
    asking: it may replace them. `new_lease`: the live record is to be put under another lease,
    because its own is gone, or was granted another TTL.
    """
    if record.down:
        return _farewell(record, view)
    for other in view.elsewhere:
        if not unheard and comes_before(record, other.pod.nonce, other.pod.n):
            return _stale(record, other.pod.nonce, other.pod.n, f"from {other.pod.ip}")
    live = view.live
    if live is not None and live.pod.id == record.id:
        return _update(record, live, view, unheard=unheard, new_lease=new_lease)
    if live is not None and not unheard:
        return Refuse(
            "Conflict",
            f"key {record.key} belongs to pod {live.pod.id} at {live.pod.ip}, which is alive; "
            f"pod {record.id} at {record.ip} gets it once that one leaves or is silent",
        )
    return _join(record, view, unheard=unheard)


def _update(
    record: Keepalive, live: Live, view: View, *, unheard: bool, new_lease: bool
) -> Decision:
    known = live.pod
    if not unheard and comes_before(record, known.nonce, known.n):
        return _stale(record, known.nonce, known.n, "of this pod")
    if view.elsewhere or new_lease:
        return _join(record, view, unheard=unheard)
    # An equal order with another content is another sender's: were it taken for known, a forged
    # record would stand in for the pod's own that came after it.
    pod = Pod.of(record, known.seq)
    return Refresh(live) if pod == known else Write(pod, live)


def _join(record: Keepalive, view: View, *, unheard: bool) -> Decision:
    live, registration = view.live, view.registration
    mine = live is not None and live.pod.id == record.id
    returning = registration is not None and registration.id == record.id
    if registration is not None and returning and not mine:
        if registration.left and record.nonce and record.nonce == registration.nonce:
            return Refuse(
                "Gone",
                f"pod {record.id} (nonce {record.nonce}) said farewell; "
                "it is taken in again when its process restarts",
            )
        if not unheard and comes_before(record, registration.nonce, registration.n):
            return _stale(record, registration.nonce, registration.n, "of this pod")
    if live is not None and mine:
        seq: int | None = live.pod.seq
    else:
        seq = registration.seq if registration is not None and returning else None
    return Join(
        record,
        seq,
        moved=tuple(view.elsewhere),
        bury=registration
        if registration is not None and registration.left and not returning
        else None,
    )


def _farewell(record: Keepalive, view: View) -> Decision:
    live, registration = view.live, view.registration
    if live is not None and live.pod.id == record.id:
        if comes_before(record, live.pod.nonce, live.pod.n):
            return _stale(record, live.pod.nonce, live.pod.n, "of this pod")
        return Leave(Registration.of(Pod.of(record, live.pod.seq), registration, left=True), live)
    if (
        live is None
        and registration is not None
        and registration.id == record.id
        and not registration.left
    ):
        if comes_before(record, registration.nonce, registration.n):
            return _stale(record, registration.nonce, registration.n, "of this pod")
        return Leave(replace(registration, nonce=record.nonce, n=record.n, left=True), None)
    return Nothing()


def _stale(record: Keepalive, nonce: str, n: int | None, whose: str) -> Refuse:
    # Agents whose clock was set back read the newest nonce from this: docs/rpc.rst promises it.
    return Refuse(
        "Stale",
        f"record {record.nonce}/{record.n} of pod {record.id} is older than {nonce}/{n}, "
        f"the newest {whose}: another process reports under this id, a message came late, or the "
        "clock of its host was set back",
    )


@dataclass(frozen=True, slots=True)
class Counter:
    """The next sequence number, and its revision in the store (0: never written)."""

    next: int = 0
    revision: int = 0


@dataclass(slots=True)
class TxnBuilder:
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
                    self.ops.append(
                        Put(self.keys.archived_registration(pod.key, bury.seq), bury.encode())
                    )
                return pod.seq
            case Leave(registration, live):
                self._as_read(record.key, view)
                self.ops.append(Put(self.keys.registration(record.key), registration.encode()))
                if live is not None:
                    self.ops.append(Delete(self.keys.pod(record.key)))
                return registration.seq
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
            Compare(self.keys.registration(key), "mod", "=", view.registration_revision),
        ]

    def _put(self, pod: Pod, lease: int, view: View, sender: str | None) -> None:
        self.ops += [
            Put(self.keys.pod(pod.key), pod.encode(), lease),
            Put(
                self.keys.registration(pod.key),
                Registration.of(pod, view.registration, sender=sender).encode(),
            ),
        ]

    def _put_out(self, moved: Iterable[Live], view: View) -> None:
        for other in moved:
            self._unmoved(other)
            registration = Registration.of(
                other.pod, view.registrations.get(other.pod.key), left=True
            )
            self.ops += [
                Delete(self.keys.pod(other.pod.key)),
                Put(self.keys.registration(other.pod.key), registration.encode()),
            ]
