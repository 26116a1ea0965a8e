"""CURVE inside of the ZMTP machine: whole connections, and an attacker who changes their bytes."""

import os
import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.rpc.support import DEADLINE
from tests.rpc.zmtp.ping import ping
from tests.rpc.zmtp.test_curve_libzmq import CLIENT as ZMQ_CLIENT
from tests.rpc.zmtp.test_curve_libzmq import MESSAGES, Libzmq, listening
from tests.rpc.zmtp.test_curve_libzmq import SERVER as ZMQ_SERVER

from kontrol.rpc.limits import Limits
from kontrol.rpc.zmtp.curve import CurveClient, CurveServer, KeyPair
from kontrol.rpc.zmtp.machine import (
    CLIENT,
    SERVER,
    Command,
    Event,
    Machine,
    Mismatch,
    Parts,
    Ready,
    Rejected,
    Violation,
)
from kontrol.rpc.zmtp.mechanism import Null

OURS, THEIRS, OTHER = ZMQ_CLIENT, ZMQ_SERVER, KeyPair.of(os.urandom(32))
LIMITS = Limits()
REQUESTS: list[Parts] = [[b"", b"a request"], [b"", b"another"]]
ANSWERS: list[Parts] = [[b"", b"its answer"], [b"", b"and its"]]

Change = Callable[[str, int, bytes], bytes]
"""Returns what arrives of the bytes from `client` or `server` that begin at a place."""


def untouched(_: str, __: int, data: bytes) -> bytes:
    return data


class End:
    """One end of a connection, with what it got and how it ended."""

    def __init__(self, machine: Machine, to_send: list[Parts]) -> None:
        self.machine = machine
        self.to_send = to_send
        self.got: list[Parts] = []
        self.commands: list[bytes] = []
        self.failure: Violation | None = None
        self.sent = 0

    def receive(self, data: bytes) -> None:
        if self.failure is not None:
            return
        self.machine.receive(data, 0.0)
        try:
            while (event := self.machine.next()) is not None:
                if isinstance(event, Ready):
                    for parts in self.to_send:
                        self.machine.send(parts)
                elif isinstance(event, Command):
                    self.commands.append(event.name)
                else:
                    self.got.append(event)
        except Violation as error:
            self.failure = error

    def take(self) -> bytes:
        data = self.machine.take()
        self.sent += len(data)
        return data


class Connection:
    """Both ends, with what they send and how it is changed on the way."""

    def __init__(
        self,
        change: Change = untouched,
        *,
        refusal: str | None = None,
        server: bytes = THEIRS.public,
    ) -> None:
        client = CurveClient(OURS, server, {b"Socket-Type": b"DEALER"}, os.urandom)
        service = CurveServer(THEIRS, lambda _: refusal, {b"Socket-Type": b"ROUTER"}, os.urandom)
        self.client = End(Machine(CLIENT, client, LIMITS, 0.0), REQUESTS)
        self.server = End(Machine(SERVER, service, LIMITS, 0.0), ANSWERS)
        self._change = change

    def run(self) -> None:
        """Let both ends talk until neither has anything to say."""
        while self.client.machine.queued or self.server.machine.queued:
            self._move("client", self.client, self.server)
            self._move("server", self.server, self.client)

    def _move(self, side: str, sender: End, receiver: End) -> None:
        at = sender.sent
        if data := sender.take():
            receiver.receive(self._change(side, at, data))


def test_messages_go_both_ways() -> None:
    connection = Connection()
    connection.run()
    assert (connection.client.failure, connection.server.failure) == (None, None)
    assert connection.server.got == REQUESTS
    assert connection.client.got == ANSWERS


def test_heartbeats_go_both_ways() -> None:
    connection = Connection()
    connection.run()
    ping(connection.client.machine, 5.0)
    connection.run()
    assert connection.server.commands == [b"PING"]
    assert connection.client.commands == [b"PONG"]
    assert connection.server.machine.due == 5.0


def test_a_key_that_is_refused_is_told_so() -> None:
    connection = Connection(refusal="its key is not listed")
    connection.run()
    assert str(connection.server.failure) == "its key is not listed"
    assert isinstance(connection.client.failure, Rejected)
    assert str(connection.client.failure) == "400"
    assert not connection.server.got


def test_a_client_of_another_server_is_told_nothing() -> None:
    connection = Connection(server=OTHER.public)
    connection.run()
    assert "another public key" in str(connection.server.failure)
    assert connection.client.failure is None  # it sees the connection end
    assert connection.server.sent == 64


@pytest.mark.parametrize("keyed", [True, False])
def test_an_end_without_keys_is_a_mismatch(keyed: bool) -> None:
    connection = Connection()
    plain = Machine(CLIENT if keyed else SERVER, Null({}), LIMITS, 0.0)
    if keyed:
        connection.client.machine = plain
    else:
        connection.server.machine = plain
    connection.run()
    for end in (connection.client, connection.server):
        assert isinstance(end.failure, Mismatch)


HEADERS = {  # of frames of the handshake, and where messages begin
    "client": ({64, 65, *range(266, 275)}, 266 + 9 + 279),
    "server": ({64, 65, 234, 235}, 234 + 2 + 52),
}


def flipped(side: str, place: int, bit: int) -> Change:
    def change(sender: str, at: int, data: bytes) -> bytes:
        if sender != side or not at <= place < at + len(data):
            return data
        changed = bytearray(data)
        changed[place - at] ^= 1 << bit
        return bytes(changed)

    return change


@pytest.mark.parametrize("side", ["client", "server"])
def test_no_message_follows_a_bit_that_was_changed(side: str) -> None:
    """After the greeting, whose padding has no meaning, each bit counts, those of frames too."""
    whole = Connection()
    whole.run()
    size = (whole.client if side == "client" else whole.server).sent
    headers, messages = HEADERS[side]
    places = [
        (place, bit)
        for place in range(64, size)
        for bit in (range(8) if place in headers or place >= messages else (place % 8,))
    ]
    for place, bit in places:
        connection = Connection(flipped(side, place, bit))
        connection.run()
        got, sent = connection.server.got, REQUESTS
        if side == "server":
            got, sent = connection.client.got, ANSWERS
        assert got == sent[: len(got)]
        assert len(got) < len(sent), (place, bit)


@given(st.sampled_from(["client", "server"]), st.data())
def test_what_arrives_is_the_beginning_of_what_was_sent_whatever_is_cut_or_repeated(
    side: str, data: st.DataObject
) -> None:
    def change(sender: str, _: int, sent: bytes) -> bytes:
        if sender != side:
            return sent
        edges = st.integers(0, len(sent))
        a, b = sorted((data.draw(edges), data.draw(edges)))
        return data.draw(st.sampled_from([sent, sent[:a] + sent[b:], sent + sent[a:b]]))

    connection = Connection(change)
    connection.run()
    for end, expected in ((connection.server, REQUESTS), (connection.client, ANSWERS)):
        assert end.got == expected[: len(end.got)]


# Against libzmq.


@pytest.fixture
def libzmq() -> Iterator[Libzmq]:
    made = Libzmq()
    yield made
    made.close()


class Live:
    """A machine on a socket."""

    def __init__(self, end: socket.socket, machine: Machine) -> None:
        self._end = end
        self._end.settimeout(DEADLINE)
        self.machine = machine

    def next(self) -> Event:
        while (event := self.machine.next()) is None:
            self.flush()
            data = self._end.recv(65536)
            assert data
            self.machine.receive(data, 0.0)
        self.flush()
        return event

    def send(self, parts: Parts) -> None:
        self.machine.send(parts)
        self.flush()

    def flush(self) -> None:
        self._end.sendall(self.machine.take())

    def close(self) -> None:
        self._end.close()


def test_a_client_calls_libzmq(libzmq: Libzmq) -> None:
    router, port = libzmq.serving()
    mechanism = CurveClient(OURS, THEIRS.public, {b"Socket-Type": b"DEALER"}, os.urandom)
    end = socket.create_connection(("127.0.0.1", port), DEADLINE)
    live = Live(end, Machine(CLIENT, mechanism, LIMITS, 0.0))
    assert isinstance(live.next(), Ready)
    ping(live.machine, 5.0)
    assert live.next() == Command(b"PONG")
    for message in MESSAGES:
        live.send(message)
        name, *parts = router.recv_multipart()
        assert parts == message
        router.send_multipart([name, *message])
        assert live.next() == message
    live.close()


def test_libzmq_calls_a_server_and_sends_heartbeats(libzmq: Libzmq) -> None:
    with listening() as (listener, port):
        dealer = libzmq.calling(port, beat=20)
        mechanism = CurveServer(THEIRS, lambda _: None, {b"Socket-Type": b"ROUTER"}, os.urandom)
        live = Live(listener.accept()[0], Machine(SERVER, mechanism, LIMITS, 0.0))
        assert isinstance(live.next(), Ready)
        assert mechanism.peer == OURS.public
        assert [live.next() for _ in range(3)] == [Command(b"PING")] * 3
        for message in MESSAGES:
            dealer.send_multipart(message)
            while (event := live.next()) == Command(b"PING"):
                pass
            assert event == message
            live.send(message)
            assert dealer.recv_multipart() == message
        live.close()
