"""The limits that keep a hostile or broken peer from stalling or bloating the process. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what one peer, and all of them together, can make an endpoint hold or do.

    The string below each field is its line in the published table of limits.
    """

    frame: int = 2 * 1024 * 1024
    """Bytes of one event."""

    readable: int = 8 * 1024 * 1024
    """Bytes of what is answered with an error that says so, if it is over the former: a ZeroMQ
    message, complete or not. More closes the connection that sent it."""

    parts: int = 8
    """ZeroMQ message parts of one event, routing envelope included."""

    most_parts: int = 64
    """ZeroMQ message parts of what is answered with an error, if it is over the former. More closes
    the connection."""

    command: int = 4096
    """Bytes of one command of ZeroMQ's protocol: of its handshake, of heartbeats."""

    handshake_bytes: int = 16 * 1024
    """Bytes of a ZeroMQ handshake."""

    values: int = 10_000
    """Values in one event received, keys and containers counted. Bounds decoding to about 2 ms."""

    depth: int = 64
    """Arrays and maps nested in one event received."""

    text: int = 256
    """Bytes of a message id or of a method's name."""

    calls: int = 4096
    """Calls in progress in a server; each is one open channel and one handler."""

    calls_per_peer: int = 1024
    """Calls in progress for one connection."""

    window: int = 100
    """Items of one stream sent ahead of its consumer (the reference library's number)."""

    unread: int = 1024 * 1024
    """Bytes sent that wait for a connection whose peer does not read them; handlers wait with more.
    One event is sent whole."""

    deaf: float = 30.0
    """Seconds for which a peer, or its system, may take in nothing of what waits for it. Then its
    connection is closed. A caller waits no longer for its connection to be made either."""

    unfinished: int = 64 * 1024 * 1024
    """Bytes of messages that have not arrived completely, of all connections to a server. With
    more, the connection that has most of them is closed."""

    handshake: float = 10.0
    """Seconds in which a new connection must have completed its handshake. Then it is closed."""

    handshakes: int = 4096
    """Connections to a server that have not completed their handshake. With more, the oldest of
    these is closed."""

    connections: int = 65_536
    """Connections to a server, or as many as leave the process a quarter of its descriptors, or
    1000. With more, the one that has said nothing for longest is closed, of those without a call
    in progress."""

    per_address: int = 8192
    """Connections to a server from one address. With more, the same, of that address."""

    backlog: int = 4096
    """Connections not yet accepted; the kernel's `net.core.somaxconn` bounds it too."""
