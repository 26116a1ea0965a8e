"""CURVE against libzmq, in both roles, over real connections.

The framing is a few lines here, so that what is tested is the mechanism alone.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import pytest
import zmq
from tests.rpc.support import DEADLINE
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from kontrol.rpc.zmtp.curve import CurveClient, CurveServer, KeyPair
from kontrol.rpc.zmtp.mechanism import HandshakeError

COMMAND, LONG, MORE = 4, 2, 1
CLIENT, SERVER, OTHER = (KeyPair.of(os.urandom(32)) for _ in range(3))
DEALER, ROUTER = {b"Socket-Type": b"DEALER", b"Identity": b""}, {b"Socket-Type": b"ROUTER"}
MESSAGES = [
    [b"one part"],
    [b""],
    [b"", b"", b"three parts"],
    [b"x" * 221, b"x" * 222, b"x" * 223, b"x" * 255, b"x" * 256],  # around the long frame
    [os.urandom(1 << 20), b"after a long one"],
]


class Connection:
    """ZMTP 3.1 on a socket: the greeting, and frames."""

    def __init__(self, end: socket.socket, mechanism: CurveClient | CurveServer) -> None:
        self._end = end
        self._end.settimeout(DEADLINE)
        self.mechanism = mechanism

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.close()

    def greet(self) -> None:
        server = bytes((isinstance(self.mechanism, CurveServer),))
        self._end.sendall(
            b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE" + bytes(15) + server + bytes(31)
        )
        assert self._read(64)[12:32] == b"CURVE" + bytes(15)

    def handshake(self) -> None:
        """Complete the handshake. Raises `HandshakeError`, after telling the peer."""
        self.greet()
        command = self.mechanism.start()
        if command is not None:
            self.send(COMMAND, command)
        while not self.mechanism.ready:
            flags, body = self.read()
            assert flags == COMMAND
            try:
                answer = self.mechanism.receive(body)
            except HandshakeError as error:
                if error.tell:
                    told = b"\x05ERROR" + bytes((len(error.tell),)) + error.tell
                    self.send(COMMAND, told)
                raise
            if answer is not None:
                self.send(COMMAND, answer)

    def send_message(self, parts: list[bytes]) -> None:
        for part in parts[:-1]:
            self.send(0, self.mechanism.seal(part, more=True, command=False))
        self.send(0, self.mechanism.seal(parts[-1], more=False, command=False))

    def send_command(self, body: bytes) -> None:
        self.send(0, self.mechanism.seal(body, more=False, command=True))

    def unseal(self) -> tuple[bytes, bool, bool]:
        flags, body = self.read()
        assert flags == 0
        return self.mechanism.unseal(body)

    def read_message(self) -> list[bytes]:
        parts: list[bytes] = []
        while True:
            part, more, command = self.unseal()
            assert not command
            parts.append(part)
            if not more:
                return parts

    def send(self, flags: int, body: bytes) -> None:
        size = len(body)
        if size < 256:
            self._end.sendall(bytes((flags, size)) + body)
        else:
            self._end.sendall(bytes((flags | LONG,)) + size.to_bytes(8) + body)

    def read(self) -> tuple[int, bytes]:
        flags = self._read(1)[0]
        size = int.from_bytes(self._read(8 if flags & LONG else 1))
        return flags & ~LONG, self._read(size)

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._end.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)


class Libzmq:
    """The sockets of libzmq that a test has."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []

    def close(self) -> None:
        for made in self._sockets:
            made.close(linger=0)
        self._context.term()

    def socket(self, kind: int) -> "zmq.Socket[bytes]":
        self._sockets.append(made := self._context.socket(kind))
        made.setsockopt(zmq.RCVTIMEO, int(DEADLINE * 1000))
        made.setsockopt(zmq.SNDTIMEO, int(DEADLINE * 1000))
        return made

    def serving(self, domain: bytes = b"") -> tuple["zmq.Socket[bytes]", int]:
        """Return a ROUTER with keys, and its port."""
        router = self.socket(zmq.ROUTER)
        if domain:
            router.setsockopt(zmq.ZAP_DOMAIN, domain)
        router.setsockopt(zmq.CURVE_SERVER, 1)
        router.setsockopt(zmq.CURVE_SECRETKEY, z85.encode(SERVER.secret))
        return router, router.bind_to_random_port("tcp://127.0.0.1")

    def calling(self, port: int, server: KeyPair = SERVER, beat: int = 0) -> "zmq.Socket[bytes]":
        """Return a DEALER with keys, connected; it sends a heartbeat each `beat` milliseconds."""
        dealer = self.socket(zmq.DEALER)
        dealer.setsockopt(zmq.HEARTBEAT_IVL, beat)
        dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 60_000)
        dealer.setsockopt(zmq.CURVE_PUBLICKEY, z85.encode(CLIENT.public))
        dealer.setsockopt(zmq.CURVE_SECRETKEY, z85.encode(CLIENT.secret))
        dealer.setsockopt(zmq.CURVE_SERVERKEY, z85.encode(server.public))
        dealer.connect(f"tcp://127.0.0.1:{port}")
        return dealer

    def watched(self, made: "zmq.Socket[bytes]", events: int) -> "zmq.Socket[bytes]":
        """Return a socket on which these events of another are reported."""
        made.monitor("inproc://watch", events)
        watch = self.socket(zmq.PAIR)
        watch.connect("inproc://watch")
        return watch


@pytest.fixture
def libzmq() -> Iterator[Libzmq]:
    made = Libzmq()
    yield made
    made.close()


def connected(port: int, server: bytes = SERVER.public) -> Connection:
    return Connection(
        socket.create_connection(("127.0.0.1", port), DEADLINE),
        CurveClient(CLIENT, server, DEALER, os.urandom),
    )


@contextlib.contextmanager
def listening() -> Iterator[tuple[socket.socket, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE)
        yield listener, listener.getsockname()[1]


def accepted(listener: socket.socket, refusal: str | None = None) -> Connection:
    mechanism = CurveServer(SERVER, lambda _: refusal, ROUTER, os.urandom)
    return Connection(listener.accept()[0], mechanism)


def test_a_client_and_libzmq_exchange_messages(libzmq: Libzmq) -> None:
    router, port = libzmq.serving()
    with connected(port) as connection:
        connection.handshake()
        assert connection.mechanism.peer == SERVER.public
        assert connection.mechanism.metadata[b"socket-type"] == b"ROUTER"
        for message in MESSAGES:
            connection.send_message(message)
            name, *parts = router.recv_multipart()
            assert parts == message
            router.send_multipart([name, *message])
            assert connection.read_message() == message


def test_libzmq_and_a_server_exchange_messages(libzmq: Libzmq) -> None:
    with listening() as (listener, port):
        dealer = libzmq.calling(port)
        with accepted(listener) as connection:
            connection.handshake()
            assert connection.mechanism.peer == CLIENT.public
            assert connection.mechanism.metadata[b"socket-type"] == b"DEALER"
            for message in MESSAGES:
                dealer.send_multipart(message)
                assert connection.read_message() == message
                connection.send_message(message)
                assert dealer.recv_multipart() == message


@pytest.mark.parametrize("size", [0, 16])
def test_heartbeats_are_commands_in_messages(libzmq: Libzmq, size: int) -> None:
    router, port = libzmq.serving()
    with connected(port) as connection:
        connection.handshake()
        context_ = os.urandom(size)
        connection.send_command(b"\x04PING\x00\x64" + context_)
        assert connection.unseal() == (b"\x04PONG" + context_, False, True)
        connection.send_message([b"still there"])
        assert router.recv_multipart()[1:] == [b"still there"]


def test_libzmq_beats_in_messages_and_needs_an_answer(
    libzmq: Libzmq,
) -> None:
    with listening() as (listener, port):
        dealer = libzmq.calling(port, beat=20)
        with accepted(listener) as connection:
            connection.handshake()
            for _ in range(3):
                frame, more, command = connection.unseal()
                assert (frame[:5], more, command) == (b"\x04PING", False, True)
                connection.send_command(b"\x04PONG" + frame[7:])
            connection.send_message([b"between", b"them"])
            assert dealer.recv_multipart() == [b"between", b"them"]


def test_a_server_is_called_by_libzmq_with_another_key(
    libzmq: Libzmq,
) -> None:
    with listening() as (listener, port):
        dealer = libzmq.calling(port, OTHER)
        watch = libzmq.watched(dealer, zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        with (
            accepted(listener) as connection,
            pytest.raises(HandshakeError, match="another public key"),
        ):
            connection.handshake()
        assert recv_monitor_message(watch)["event"] == zmq.EVENT_DISCONNECTED


def test_libzmq_is_told_that_its_key_is_refused(libzmq: Libzmq) -> None:
    with listening() as (listener, port):
        dealer = libzmq.calling(port)
        failed = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        failed |= zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_SUCCEEDED
        watch = libzmq.watched(dealer, failed)
        with accepted(listener, "not listed") as connection:
            with pytest.raises(HandshakeError, match="not listed"):
                connection.handshake()
            event = recv_monitor_message(watch)
            assert (event["event"], event["value"]) == (zmq.EVENT_HANDSHAKE_FAILED_AUTH, 400)


def test_a_client_hears_that_libzmq_refuses_its_key(
    libzmq: Libzmq,
) -> None:
    asked = libzmq.socket(zmq.REP)
    asked.bind("inproc://zeromq.zap.01")
    _, port = libzmq.serving(b"test")
    with connected(port) as connection:
        connection.greet()
        hello = connection.mechanism.start()
        assert hello is not None
        connection.send(COMMAND, hello)
        initiate = connection.mechanism.receive(connection.read()[1])
        assert initiate is not None
        connection.send(COMMAND, initiate)
        version, request, *_, key = asked.recv_multipart()
        assert key == CLIENT.public
        asked.send_multipart([version, request, b"400", b"no", b"", b""])
        flags, error = connection.read()
        assert (flags, error) == (COMMAND, b"\x05ERROR\x03400")
        with pytest.raises(HandshakeError, match="does not accept our key"):
            connection.mechanism.receive(error)


def test_libzmq_with_another_key_closes_without_a_word(
    libzmq: Libzmq,
) -> None:
    _, port = libzmq.serving()
    with connected(port, OTHER.public) as connection:
        with pytest.raises((EOFError, ConnectionResetError)):
            connection.handshake()
        assert not connection.mechanism.ready


def test_libzmq_takes_a_message_in_a_command_frame_for_a_command(
    libzmq: Libzmq,
) -> None:
    """So MESSAGE goes in a frame without that flag (docs/decisions/0173)."""
    router, port = libzmq.serving()
    with connected(port) as connection:
        connection.handshake()
        connection.send(COMMAND, connection.mechanism.seal(b"lost", more=False, command=False))
        connection.send_message([b"kept"])
        assert router.recv_multipart()[1:] == [b"kept"]
