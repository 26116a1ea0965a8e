"""What agents and masters say to each other, by the code that says it: event, frame, connection.

Each keepalive is encoded, framed by one end of a ZMTP connection, read by the other, recognised by
its bytes or decoded, and its answer goes the same way back. The two ends of the connection are in
memory; what the network does to a message, it does after that.
"""

from collections.abc import Mapping

from kontrol.master.master import Master
from kontrol.master.registry.conflicts import Sender
from kontrol.rpc.channel import Channel, Side
from kontrol.rpc.errors import Refused, RemoteError
from kontrol.rpc.events import Event, Failure, Open, Result, failure
from kontrol.rpc.limits import Limits
from kontrol.rpc.wire import Codec, Message, peek
from kontrol.rpc.zmtp.machine import CLIENT, SERVER, Machine, Ready, Role
from kontrol.rpc.zmtp.mechanism import Null

LIMITS = Limits()
CODEC = Codec(LIMITS)
HEARTBEAT = 5.0


class Line:
    """A connection of an agent to a master."""

    def __init__(self, name: str, now: float) -> None:
        self._name = name
        self._calls = 0
        self._client, self._server = _machine(CLIENT, now), _machine(SERVER, now)
        ready = 0
        while ready < 2:
            for one, other in ((self._client, self._server), (self._server, self._client)):
                other.receive(one.take(), now)
                while (event := other.next()) is not None:
                    assert isinstance(event, Ready)
                    ready += 1

    def call(self, raw: str, now: float) -> "Call":
        """Begin a call of `ping`."""
        self._calls += 1
        return Call(self, f"{self._name}-{self._calls:x}", raw, now)

    def carry(self, frame: bytes, now: float, *, back: bool = False) -> bytes:
        """Return what arrives at the other end of this frame."""
        one, other = (self._client, self._server)[:: -1 if back else 1]
        one.send((b"", frame))
        other.receive(one.take(), now)
        parts = other.next()
        assert isinstance(parts, list)
        assert other.next() is None
        assert parts == [b"", frame]
        return parts[-1]


class Call:
    """A call of `ping`, from its first event, which arrives as `frame`, to its answer."""

    def __init__(self, line: Line, id: str, raw: str, now: float) -> None:  # noqa: A002 - the wire's word
        self._line = line
        self._id = id
        self._channel = Channel(Side.CALLER, now, heartbeat=HEARTBEAT)
        opening = Open("ping", (raw,))
        self.frame = line.carry(CODEC.encode(Message(id, None, opening)), now)
        self._channel.send(opening)

    def answered(self, frame: bytes, now: float) -> Mapping[str, object] | RemoteError | None:
        """Return what an answer says; None for one that comes a second time."""
        message = CODEC.decode(self._line.carry(frame, now, back=True))
        assert message.to == self._id
        if self._channel.closed:
            return None
        self._channel.receive(message.event, now)
        if isinstance(message.event, Failure):
            return RemoteError(message.event.error, message.event.message)
        assert isinstance(message.event, Result)
        assert isinstance(message.event.value, dict)
        return message.event.value


async def answer(
    master: Master, frame: bytes, ip: str, now: float, *, takes_live: bool = True
) -> bytes:
    """Accept or refuse the keepalive in a frame, as `kontrol.rpc.server` has masters do.

    Not `takes_live`: this version of the masters does not know live facts.
    """
    call = peek(frame)
    assert call is not None, "an agent's keepalive is read by its bytes"
    to, name, text = call
    assert name == "ping"
    event: Event
    try:
        known = master.registry.refresh_known(text)
        acknowledged = None if known is None else await known
        if acknowledged is None:
            message = CODEC.decode(frame)
            assert isinstance(message.event, Open)
            channel = Channel(Side.ANSWERER, now, heartbeat=HEARTBEAT)
            channel.receive(message.event, now)
            (raw,) = message.event.args
            assert isinstance(raw, str)
            acknowledged = await master.ping(raw, Sender(ip))
            channel.send(Result(acknowledged))
        if not takes_live:
            acknowledged.pop("live", None)
        event = Result(acknowledged)
    except Refused as error:
        event = failure(error.name, error.message)
    return CODEC.encode(Message("0", to, event))


def _machine(role: Role, now: float) -> Machine:
    return Machine(role, Null({b"Socket-Type": role.socket_type}), LIMITS, now)
