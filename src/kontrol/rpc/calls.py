"""The calls in progress in a server, each a channel with its handler's task, and their bounds.

A channel belongs to the connection that opened it: its key is the routing envelope with the message
id, so no peer can touch another's calls.
"""

import asyncio
from collections.abc import Iterable

from kontrol.rpc.channel import Channel, Channels, Side
from kontrol.rpc.errors import Refused
from kontrol.rpc.events import Reply
from kontrol.rpc.limits import Limits
from kontrol.rpc.methods import Call
from kontrol.rpc.peers import Peer
from kontrol.rpc.wire import Id

Envelope = tuple[Peer, tuple[bytes, ...]]
"""How a message is routed back: by its connection, and what routers on the way have put first."""


class Serving(Channel):
    """An open channel of a server, with its handler's task.

    `owed` is the ending that waits for the caller's room, `room` what the handler waits for. `call`
    is what the handler was given.
    """

    __slots__ = ("call", "envelope", "id", "owed", "peer", "room", "task")

    def __init__(
        self,
        envelope: Envelope,
        id: Id,  # noqa: A002 - the wire's word
        now: float,
        heartbeat: float,
    ) -> None:
        super().__init__(Side.ANSWERER, now, heartbeat=heartbeat)
        self.envelope = envelope
        self.id = id
        self.peer = envelope[0]
        self.call: Call | None = None
        self.task: asyncio.Task[object] | None = None
        self.owed: Reply | None = None
        self.room: asyncio.Future[None] | None = None


class Calls:
    """The open channels of a server; `channels` has them in the order in which they are due."""

    def __init__(self, limits: Limits) -> None:
        self.channels: Channels[tuple[Envelope, Id], Serving] = Channels()
        self._limits = limits
        self._of: dict[Peer, set[Serving]] = {}

    def check(self, envelope: Envelope, id: Id) -> None:  # noqa: A002 - the wire's word
        """Raise `Refused` if no call of that id can be opened now."""
        limits = self._limits
        if (envelope, id) in self.channels:
            raise Refused("ProtocolError", f"message_id {id!r} is that of an open call")
        if len(self.channels) >= limits.calls:
            raise Refused("Busy", f"{limits.calls} calls are in progress: try again later")
        if envelope[0].calls >= limits.calls_per_peer:
            raise Refused(
                "Busy",
                f"this connection has {limits.calls_per_peer} calls in progress: await some",
            )

    def get(self, envelope: Envelope, id: Id) -> Serving | None:  # noqa: A002 - the wire's word
        """Return the open channel of that id."""
        return self.channels.get((envelope, id))

    def add(self, channel: Serving) -> None:
        """Add a channel that was made just now."""
        self.channels.add((channel.envelope, channel.id), channel)
        channel.peer.calls += 1
        self._of.setdefault(channel.peer, set()).add(channel)

    def of(self, peer: Peer) -> Iterable[Serving]:
        """Return the open channels of a connection."""
        return tuple(self._of.get(peer, ()))

    def has(self, channel: Serving) -> bool:
        """Return whether that very channel is open still."""
        return self.get(channel.envelope, channel.id) is channel

    def remove(self, channel: Serving) -> bool:
        """Take a channel out; return whether it was there."""
        if not self.has(channel):
            return False
        self.channels.remove((channel.envelope, channel.id))
        channel.peer.calls -= 1
        of = self._of[channel.peer]
        of.discard(channel)
        if not of:
            del self._of[channel.peer]
        return True
