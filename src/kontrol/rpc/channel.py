"""The channel: one call, as a state machine that both of its ends run; and many, with one timer.

Theory of operation. A channel begins with the caller's `Open` and ends with one `Result`, one
`Failure`, or `Done` after any number of `Item`s. In between, both ends may send `Beat` and `More`.
A `Failure` from the caller says that it has given up: the reference library knows no such event
and ignores it, ours cancels the handler (docs/decisions/0012). `_NEXT` is the whole of it: an event
that has no row is illegal, raises `Illegal`, and changes nothing.

*Credit.* An end may send as many events with data as it has been granted, one to begin with. Only
`More` grants. `Beat` and `More` themselves are free.

*Beats.* Both ends send a beat every `heartbeat` seconds, the first one interval after the channel
opened, so that a call that ends sooner never pays for one. A peer counts as lost when, at one of
these moments, nothing was received for over two intervals; the first interval is not held against
it, because passive peers only start beating when they have heard us. As the reference has it, but
for two things: any event is a sign of life, and silence that may be our own fault is forgiven: a
tick that comes an interval late, or while events are known to wait that we have not read.

Pure. Time is an argument everywhere: seconds of any monotonic clock.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

from kontrol.rpc.events import Beat, Done, Event, Failure, Item, More, Open, Result


class Side(IntEnum):
    """The two ends of a channel."""

    CALLER = 0
    ANSWERER = 1


class State(IntEnum):
    """How far the call has come."""

    IDLE = 0
    OPEN = 1
    STREAMING = 2
    CLOSED = 3


_NEXT: dict[tuple[Side, State, type[Event]], State] = {
    (Side.CALLER, State.IDLE, Open): State.OPEN,
    (Side.CALLER, State.OPEN, Failure): State.CLOSED,
    (Side.CALLER, State.STREAMING, Failure): State.CLOSED,
    (Side.ANSWERER, State.OPEN, Result): State.CLOSED,
    (Side.ANSWERER, State.OPEN, Failure): State.CLOSED,
    (Side.ANSWERER, State.OPEN, Item): State.STREAMING,
    (Side.ANSWERER, State.OPEN, Done): State.CLOSED,
    (Side.ANSWERER, State.STREAMING, Item): State.STREAMING,
    (Side.ANSWERER, State.STREAMING, Done): State.CLOSED,
    (Side.ANSWERER, State.STREAMING, Failure): State.CLOSED,
    **{
        (side, state, kind): state
        for side in Side
        for state in (State.OPEN, State.STREAMING)
        for kind in (More, Beat)
    },
}


class Illegal(Exception):
    """An event that may not be sent or received now; the channel is as it was."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The peer has not sent anything for `silence` seconds."""

    silence: float


class Channel:
    """One call, seen from `side`. `window` is the most data events accepted ahead of `take`."""

    __slots__ = ("_due", "_heard", "_heartbeat", "_window", "credit", "granted", "side", "state")

    def __init__(self, side: Side, now: float, *, heartbeat: float, window: int = 1) -> None:
        self.side = side
        self.state = State.IDLE
        self.credit = 1
        """Data events that may be sent."""
        self.granted = 1
        """Data events that the peer may still send."""
        self._window = window
        self._heartbeat = heartbeat
        self._due = now + heartbeat
        self._heard: float | None = None

    @property
    def closed(self) -> bool:
        """Whether the call has ended."""
        return self.state is State.CLOSED

    @property
    def due(self) -> float:
        """When the next `tick` is due."""
        return self._due

    def send(self, event: Event) -> None:
        """Record that `event` is sent. Raises `Illegal`."""
        state = self._next(self.side, event)
        if self.side is Side.ANSWERER and not isinstance(event, Beat | More):
            if not self.credit:
                raise Illegal(f"{event.name} cannot be sent: the peer has asked for no more")
            self.credit -= 1
        self.state = state

    def receive(self, event: Event, now: float) -> None:
        """Record that `event` was received. Raises `Illegal`."""
        state = self._next(Side(1 - self.side), event)
        if isinstance(event, More):
            self.credit += event.slots
        elif isinstance(event, Item):
            if not self.granted:
                raise Illegal(f"the peer sent more than the {self._window} items that it may")
            self.granted -= 1
        self.state = state
        if not isinstance(event, Open):  # which is when the first interval begins
            self._heard = now

    def grant(self, queued: int) -> More | None:
        """Return what to ask the peer for, now that `queued` items wait here for their consumer.

        None if half the window is still open: asking for every item would double the traffic.
        """
        open_slots = self._window - queued - self.granted
        if self.state is not State.STREAMING or open_slots <= self._window // 2:
            return None
        self.granted += open_slots
        return More(open_slots)

    def tick(self, now: float, *, behind: bool = False) -> Beat | Lost:
        """Judge the peer at the time `due`: return the beat to send, or that it is lost.

        `behind` says that events of the connection have arrived and wait to be read.
        """
        late = now - self._due
        self._due = now + self._heartbeat
        if self._heard is None or behind or late > self._heartbeat:
            self._heard = now
        silence = now - self._heard
        return Lost(silence) if silence > 2 * self._heartbeat else Beat()

    def _next(self, sender: Side, event: Event) -> State:
        state = _NEXT.get((sender, self.state, type(event)))
        if state is None:
            raise Illegal(f"{event.name} is illegal from the {sender.name.lower()} now")
        return state


K = TypeVar("K", bound=Hashable)
C = TypeVar("C", bound=Channel)


class Channels(Generic[K, C]):
    """The open channels of an endpoint, all of one heartbeat, in the order in which they are due.

    A new channel is due last, and so is one that has just ticked: keeping the order costs nothing.
    """

    def __init__(self) -> None:
        self._channels: OrderedDict[K, C] = OrderedDict()

    def __len__(self) -> int:
        return len(self._channels)

    def __contains__(self, key: K) -> bool:
        return key in self._channels

    def __iter__(self) -> Iterator[C]:
        return iter(tuple(self._channels.values()))

    def get(self, key: K) -> C | None:
        """Return the channel of that key."""
        return self._channels.get(key)

    def add(self, key: K, channel: C) -> None:
        """Add a channel that was made just now."""
        self._channels[key] = channel

    def remove(self, key: K) -> C | None:
        """Take a channel out, if it is there."""
        return self._channels.pop(key, None)

    @property
    def due(self) -> float | None:
        """When the next tick of any channel is due; None without channels."""
        return next(iter(self._channels.values())).due if self._channels else None

    def tick(
        self, now: float, behind: Callable[[C], bool] = lambda _: False
    ) -> Iterator[tuple[C, Beat | Lost]]:
        """Tick every channel that is due; the caller sends the beats and ends the lost.

        `behind` says of a channel whether events wait to be read. Channels may be removed while
        this is iterated over.
        """
        while self._channels:
            key, channel = next(iter(self._channels.items()))
            if channel.due > now:
                return
            self._channels.move_to_end(key)
            yield channel, channel.tick(now, behind=behind(channel))
