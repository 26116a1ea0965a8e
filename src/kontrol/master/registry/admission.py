"""What to do with a keepalive, and the transaction that does it. Pure.

A keepalive is decided on once for each look at the store, on what that has for its key and its id.
The transaction compares every revision that a decision was made on, so it does all that was decided
or nothing, and a store that has changed is looked at again.

No clock decides. The one question of time is the caller's: whether the senders of the records in
the way of a keepalive are unresponsive. A refusal that would end with them holds the decision that
then takes its place.

Invariant: for one identity, no older record is written over a newer one while the process that
reported the newer one is seen. (A process with a higher nonce may be gone while one with a lower
lives: two ran under one identity, or a record was forged.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kontrol.ensemble.pod import Keepalive, Pod, comes_before
from kontrol.master.records.keys import Keys
from kontrol.master.records.pods import Live, Registration
from kontrol.store.protocol import Compare, Delete, Op, Put


@dataclass(frozen=True, slots=True)
class View:
    """What the store holds for one keepalive: at its key, and elsewhere under its id.

    The revisions are those in the store, 0 for nothing, also of what cannot be read.
    `registrations` are those of `elsewhere`, by key.
    """

    live: Live | None = None
    live_revision: int = 0
    registration: Registration | None = None
    registration_revision: int = 0
    elsewhere: Sequence[Live] = ()
    registrations: Mapping[str, Registration] = field(default_factory=dict)

    @property
    def revisions(self) -> tuple[int, ...]:
        """The revisions that a decision on this depends on."""
        others = (live.revision for live in self.elsewhere)
        return self.live_revision, self.registration_revision, *others


@dataclass(frozen=True, slots=True)
class Refresh:
    """Nothing new: refresh the lease."""

    live: Live


@dataclass(frozen=True, slots=True)
class Write:
    """A changed record of a live pod: write it under the same lease and number."""

    pod: Pod
    live: Live


@dataclass(frozen=True, slots=True)
class Join:
    """A pod that joins. `seq` is its earlier number, None for a new one.

    `moved` are its own records at earlier addresses, which count as having left. `archive` is the
    tombstone of an earlier identity at the key, to be kept under another key.
    """

    record: Keepalive
    seq: int | None
    moved: Sequence[Live] = ()
    archive: Registration | None = None


@dataclass(frozen=True, slots=True)
class Leave:
    """A deregistration: delete the record, and write the tombstone `registration`."""

    registration: Registration
    live: Live | None


@dataclass(frozen=True, slots=True)
class Nothing:
    """A deregistration of a pod that is not registered."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Not accepted: the error's name and message for the agent.

    `otherwise` is the decision once the senders of the records in the way are unresponsive; None if
    the refusal stands whatever they do.
    """

    name: str
    message: str
    otherwise: "Decision | None" = None


Decision = Refresh | Write | Join | Leave | Nothing | Refuse


def proves_alive(record: Keepalive, live: Live) -> bool:
    """Tell whether a keepalive shows that this pod lives: it is of its id, and not older."""
    pod = live.pod
    return record.id == pod.id and not comes_before(record, pod.nonce, pod.n)


def unchanged(record: Keepalive, live: Live) -> bool:
    """Tell whether the keepalive of a live pod says what its record says.

    An equal order with another content is another sender's: if it counted as known, a forged record
    would stand in for the pod's own that came after it.
    """
    return Pod.of(record, live.pod.seq) == live.pod


def decide(record: Keepalive, view: View, *, new_lease: bool = False) -> Decision:
    """Decide on one keepalive.

    `new_lease`: the live record is to be put under another lease, because its own was granted
    another TTL.
    """
    if record.down:
        return _deregister(record, view)
    refusal, decision = _conflict(record, view), _accept(record, view, new_lease=new_lease)
    return decision if refusal is None else replace(refusal, otherwise=decision)


def _conflict(record: Keepalive, view: View) -> Refuse | None:
    """Refuse a keepalive that another sender's record is in the way of."""
    live, registration = view.live, view.registration
    for other in view.elsewhere:
        if comes_before(record, other.pod.nonce, other.pod.n):
            return _stale(record, other.pod.nonce, other.pod.n, f"from {other.pod.ip}")
    if live is None:
        if registration is None or registration.id != record.id or _gone(record, registration):
            return None
        known: Pod | Registration = registration
    elif live.pod.id == record.id:
        known = live.pod
    else:
        return Refuse(
            "Conflict",
            f"key {record.key} belongs to pod {live.pod.id} at {live.pod.ip}, which is alive; "
            f"pod {record.id} at {record.ip} gets it once that one leaves or stops reporting",
        )
    stale = comes_before(record, known.nonce, known.n)
    return _stale(record, known.nonce, known.n, "of this pod") if stale else None


def _accept(record: Keepalive, view: View, *, new_lease: bool) -> Decision:
    """Decide on a keepalive with no conflict, or none any more."""
    live, before = view.live, view.registration
    seq = archive = None
    if before is not None and before.id == record.id:
        seq = before.seq
    elif before is not None and before.left:
        archive = before
    if live is not None and live.pod.id == record.id:
        if not view.elsewhere and not new_lease:
            same = unchanged(record, live)
            return Refresh(live) if same else Write(Pod.of(record, live.pod.seq), live)
        seq = live.pod.seq
    elif before is not None and before.id == record.id and _gone(record, before):
        return Refuse(
            "Gone",
            f"pod {record.id} (nonce {record.nonce}) deregistered; "
            "it is accepted again when its process restarts",
        )
    return Join(record, seq, moved=tuple(view.elsewhere), archive=archive)


def _gone(record: Keepalive, registration: Registration) -> bool:
    """Tell whether the process of a keepalive has deregistered; the registration is its pod's."""
    return registration.left and record.nonce != "" and record.nonce == registration.nonce


def _deregister(record: Keepalive, view: View) -> Decision:
    live, registration = view.live, view.registration
    if live is not None and live.pod.id == record.id:
        if comes_before(record, live.pod.nonce, live.pod.n):
            return _stale(record, live.pod.nonce, live.pod.n, "of this pod")
        return Leave(Registration.of(Pod.of(record, live.pod.seq), registration, left=True), live)
    if live is not None or registration is None or registration.id != record.id:
        return Nothing()
    if registration.left:
        return Nothing()
    if comes_before(record, registration.nonce, registration.n):
        return _stale(record, registration.nonce, registration.n, "of this pod")
    return Leave(replace(registration, nonce=record.nonce, n=record.n, left=True), None)


def _stale(record: Keepalive, nonce: str, n: int | None, whose: str) -> Refuse:
    # Agents whose clock was set back read the newest nonce from this: docs/rpc.rst promises it.
    return Refuse(
        "Stale",
        f"record {record.nonce}/{record.n} of pod {record.id} is older than {nonce}/{n}, "
        f"the newest {whose}: another process reports under this id, a message came late, or the "
        "clock of its host was set back",
    )


def keys_written(record: Keepalive, decision: Decision) -> tuple[str, ...]:
    """Return the keys of the pods whose records or registrations a decision writes."""
    match decision:
        case Join(_, _, moved):
            return (record.key, *(other.pod.key for other in moved))
        case Write() | Leave():
            return (record.key,)
        case _:
            return ()


def stored_bytes(decision: Decision, number: int) -> int:
    """Return the bytes of the record that a decision writes; `number` is what a new pod gets.

    They may be more than were sent, or fewer.
    """
    match decision:
        case Write(pod):
            return len(pod.encode())
        case Join(record, seq):
            return len(Pod.of(record, number if seq is None else seq).encode())
        case _:
            return 0


@dataclass(frozen=True, slots=True)
class Counter:
    """The next sequence number, and its revision in the store (0: never written)."""

    next: int = 0
    revision: int = 0


@dataclass(slots=True)
class TxnBuilder:
    """A transaction under construction. `given` counts the numbers that it gives to new pods."""

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
        """Add one decision; returns the pod's number, None if it has none. `lease` is a join's."""
        match decision:
            case Refresh(live):
                return live.pod.seq
            case Write(pod, live):
                self._put(pod, live.lease, view, sender)
                return pod.seq
            case Join(_, seq, moved, archive):
                pod = Pod.of(record, seq if seq is not None else self._number())
                self._put(pod, lease, view, sender)
                for other in moved:
                    self._evict(other, view)
                if archive is not None:
                    key = self.keys.archived_registration(pod.key, archive.seq)
                    self.ops.append(Put(key, archive.encode()))
                return pod.seq
            case Leave(registration, live):
                self._as_read(record.key, view)
                self.ops.append(Put(self.keys.registration(record.key), registration.encode()))
                if live is not None:
                    self.ops.append(Delete(self.keys.pod(record.key)))
                return registration.seq
            case Nothing() | Refuse():
                return None

    def close(self) -> None:
        """Raise the counter, if numbers were given."""
        if self.given:
            self.compares.append(Compare(self.keys.counter, "mod", "=", self.counter.revision))
            number = self.counter.next + self.given
            self.ops.append(Put(self.keys.counter, str(number).encode()))

    def _number(self) -> int:
        self.given += 1
        return self.counter.next + self.given - 1

    def _as_read(self, key: str, view: View) -> None:
        self.compares += [
            Compare(self.keys.pod(key), "mod", "=", view.live_revision),
            Compare(self.keys.registration(key), "mod", "=", view.registration_revision),
        ]

    def _put(self, pod: Pod, lease: int, view: View, sender: str | None) -> None:
        self._as_read(pod.key, view)
        registration = Registration.of(pod, view.registration, sender=sender)
        self.ops += [
            Put(self.keys.pod(pod.key), pod.encode(), lease),
            Put(self.keys.registration(pod.key), registration.encode()),
        ]

    def _evict(self, other: Live, view: View) -> None:
        key = other.pod.key
        registration = Registration.of(other.pod, view.registrations.get(key), left=True)
        self.compares.append(Compare(self.keys.pod(key), "mod", "=", other.revision))
        self.ops += [
            Delete(self.keys.pod(key)),
            Put(self.keys.registration(key), registration.encode()),
        ]
