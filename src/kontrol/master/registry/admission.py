"""What to do with a keepalive: a pure decision on what the store holds for its key and its id.

The decision never looks at time, except for what its caller measured: whether those who stand in
the way of a keepalive are silent, while its sender keeps asking.

Invariant: of one identity, no older record is written over a newer while the process that reported
the newer one is heard. (A process with a higher nonce may be gone while one with a lower lives: two
ran under one identity, or somebody forged a record.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kontrol.ensemble.pod import Keepalive, Pod, comes_before
from kontrol.master.records.pods import Live, Seat


@dataclass(frozen=True, slots=True)
class View:
    """What the store holds for one keepalive: at its key, and elsewhere under its id.

    The revisions are of what stands in the store, 0 for nothing, also where it could not be read.
    `seats` are those of `elsewhere`, by key.
    """

    live: Live | None = None
    live_revision: int = 0
    seat: Seat | None = None
    seat_revision: int = 0
    elsewhere: Sequence[Live] = ()
    seats: Mapping[str, Seat] = field(default_factory=dict)


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
    bury: Seat | None = None


@dataclass(frozen=True, slots=True)
class Leave:
    """A farewell: delete the record, and write the tombstone `seat`."""

    seat: Seat
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
    live, seat = view.live, view.seat
    mine = live is not None and live.pod.id == record.id
    returning = seat is not None and seat.id == record.id
    if seat is not None and returning and not mine:
        if seat.left and record.nonce and record.nonce == seat.nonce:
            return Refuse(
                "Gone",
                f"pod {record.id} (nonce {record.nonce}) said farewell; "
                "it is taken in again when its process restarts",
            )
        if not unheard and comes_before(record, seat.nonce, seat.n):
            return _stale(record, seat.nonce, seat.n, "of this pod")
    if live is not None and mine:
        seq: int | None = live.pod.seq
    else:
        seq = seat.seq if seat is not None and returning else None
    return Join(
        record,
        seq,
        moved=tuple(view.elsewhere),
        bury=seat if seat is not None and seat.left and not returning else None,
    )


def _farewell(record: Keepalive, view: View) -> Decision:
    live, seat = view.live, view.seat
    if live is not None and live.pod.id == record.id:
        if comes_before(record, live.pod.nonce, live.pod.n):
            return _stale(record, live.pod.nonce, live.pod.n, "of this pod")
        return Leave(Seat.of(Pod.of(record, live.pod.seq), seat, left=True), live)
    if live is None and seat is not None and seat.id == record.id and not seat.left:
        if comes_before(record, seat.nonce, seat.n):
            return _stale(record, seat.nonce, seat.n, "of this pod")
        return Leave(replace(seat, nonce=record.nonce, n=record.n, left=True), None)
    return Nothing()


def _stale(record: Keepalive, nonce: str, n: int | None, whose: str) -> Refuse:
    # Agents whose clock was set back read the newest nonce from this: docs/rpc.rst promises it.
    return Refuse(
        "Stale",
        f"record {record.nonce}/{record.n} of pod {record.id} is older than {nonce}/{n}, "
        f"the newest {whose}: another process reports under this id, a message came late, or the "
        "clock of its host was set back",
    )
