"""CURVE: a whole handshake, each field of each command, and the traffic after it."""

import contextlib
import hashlib
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.rpc.zmtp.curve_by_hand import (
    METADATA,
    SERVER_METADATA,
    SMALL_ORDER,
    Session,
    dice,
    public,
)
from zmq.utils import z85

from kontrol.rpc.zmtp import curve
from kontrol.rpc.zmtp.curve import MAX_METADATA, OVERHEAD, CurveClient, CurveServer, KeyPair
from kontrol.rpc.zmtp.mechanism import HandshakeError, Mechanism

# The keys of the manual page zmq_curve(7).
CLIENT = KeyPair.of(z85.decode("D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs"))
SERVER = KeyPair.of(z85.decode("JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6"))
OTHER = KeyPair.of(b"o" * 32)

OURS = {b"Socket-Type": b"DEALER", b"Identity": b""}
THEIRS = {b"Socket-Type": b"ROUTER"}


def everyone(_: bytes) -> None:
    """Accept every key."""


def a_client(
    server: bytes = SERVER.public,
    keys: KeyPair = CLIENT,
    metadata: Mapping[bytes, bytes] = OURS,
    seed: object = "client",
) -> CurveClient:
    return CurveClient(keys, server, metadata, dice(seed))


def a_server(
    admit: Callable[[bytes], str | None] = everyone,
    keys: KeyPair = SERVER,
    metadata: Mapping[bytes, bytes] = THEIRS,
    seed: object = "server",
) -> CurveServer:
    return CurveServer(keys, admit, metadata, dice(seed))


def commands(client: CurveClient, server: CurveServer) -> list[bytes]:
    """Complete a handshake, and return its four commands."""
    hello = client.start()
    welcome = server.receive(hello)
    assert welcome is not None
    initiate = client.receive(welcome)
    assert initiate is not None
    ready = server.receive(initiate)
    assert ready is not None
    assert client.receive(ready) is None
    return [hello, welcome, initiate, ready]


def a_pair() -> tuple[CurveClient, CurveServer]:
    """Return two ends that are ready."""
    client, server = a_client(), a_server()
    commands(client, server)
    return client, server


def refused(end: CurveClient | CurveServer, command: bytes, match: str) -> HandshakeError:
    """See that a command is refused, and that the end is over then."""
    with pytest.raises(HandshakeError, match=match) as caught:
        end.receive(command)
    over(end)
    return caught.value


def over(end: CurveClient | CurveServer) -> None:
    """See that an end does nothing more, and has no key of the connection."""
    assert not end.ready
    for method in (end.receive, end.unseal):
        with pytest.raises(HandshakeError):
            method(bytes(200))
    with pytest.raises(HandshakeError):
        end.seal(b"", more=False, command=False)
    assert end._short == end._shared == b""


def test_a_handshake_proves_both_keys_and_exchanges_metadata() -> None:
    asked: list[bytes] = []
    client, server = a_client(), a_server(asked.append)
    assert (client.ready, server.ready) == (False, False)
    assert [len(one) for one in commands(client, server)] == [200, 168, 257 + 35, 30 + 22]
    assert (client.ready, server.ready) == (True, True)
    assert asked == [CLIENT.public]
    assert (client.peer, server.peer) == (SERVER.public, CLIENT.public)
    assert client.metadata == {b"socket-type": b"ROUTER"}
    assert server.metadata == {b"socket-type": b"DEALER", b"identity": b""}


def test_both_ends_are_mechanisms() -> None:
    ends: list[Mechanism] = [a_client(), a_server()]
    assert [end.name for end in ends] == [b"CURVE", b"CURVE"]
    assert ends[1].start() is None


def test_the_bytes_of_a_handshake_stay_as_they_are() -> None:
    client, server = a_client(), a_server()
    sent = commands(client, server)
    sent.append(client.seal(b"a message", more=True, command=False))
    sent.append(server.seal(b"\x04PING\x00\x00", more=False, command=True))
    digests = [hashlib.sha256(one).hexdigest()[:16] for one in sent]
    assert digests == GOLDEN


GOLDEN = [
    "bd1fd7973e36dac8",
    "cb64b472ae9bdb2f",
    "b22faff87ded17c5",
    "d01a0220190f66ba",
    "76734e0f37f20c3e",
    "745b5f1ee0ff2b82",
]


def test_every_field_is_where_the_rfc_has_it() -> None:
    client, server = a_client(), a_server()
    hello, welcome, initiate, ready = commands(client, server)
    short_client, short_server = dice("client")(32), dice("server")(32)
    session = Session(CLIENT.secret, SERVER.secret, short_client, short_server)
    assert hello == session.hello()
    key, session.cookie = session.open_welcome(welcome)
    assert key == public(short_server)
    assert session.open_initiate(initiate) == (
        session.cookie,
        CLIENT.public,
        public(short_client) + SERVER.public,
        METADATA,
    )
    assert int.from_bytes(initiate[105:113]) == 2
    assert session.open_ready(ready) == SERVER_METADATA
    assert int.from_bytes(ready[6:14]) == 1
    first = client.seal(b"frame", more=True, command=False)
    assert (first[8:16], session.open_message(b"C", first)) == ((3).to_bytes(8), b"\x01frame")
    second = server.seal(b"", more=False, command=True)
    assert (second[8:16], session.open_message(b"S", second)) == ((2).to_bytes(8), b"\x02")
    assert len(second) == OVERHEAD


def test_nothing_is_used_twice() -> None:
    """Other connections have other short-term keys, cookies and nonces."""
    secrets: list[bytes] = []

    def noting(size: int) -> bytes:
        secrets.append(source(size))
        return secrets[-1]

    source = dice("all")
    for _ in range(3):
        commands(
            CurveClient(CLIENT, SERVER.public, OURS, noting),
            CurveServer(SERVER, everyone, THEIRS, noting),
        )
    assert sorted(map(len, secrets)) == [16] * 6 + [32] * 6 + [96] * 3
    assert len(set(secrets)) == len(secrets)


# What a server refuses.


def test_a_key_that_is_not_accepted_is_refused_by_name_and_told_nothing_else() -> None:
    error = None
    client, server = a_client(), a_server(lambda key: f"its key {z85.encode(key).decode()[:8]}")
    welcome = server.receive(client.start())
    assert welcome is not None
    initiate = client.receive(welcome)
    assert initiate is not None
    error = refused(server, initiate, r"its key Yne@\$w-v$")
    assert error.tell == b"400"
    refused(client, b"\x05ERROR\x03400", "^it does not accept our key$")


def test_a_client_of_another_server_is_refused() -> None:
    error = refused(a_server(), a_client(OTHER.public).start(), "another public key")
    assert error.tell == b""


SESSION = Session(CLIENT.secret, SERVER.secret, b"c" * 32)
HELLOS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "expected the command HELLO"),
    "of another name": (SESSION.hello(name=b"\x05HELLA"), "expected the command HELLO"),
    "READY": (SESSION.ready(), "expected the command HELLO"),
    "too short": (SESSION.hello()[:-1], "199 bytes; expected at least 200"),
    "too long": (SESSION.hello() + b"\0", "201 bytes; expected at least 200 and at most 200"),
    "of version 0.0": (SESSION.hello(version=b"\0\0"), "CurveZMQ 0.0"),
    "of version 1.1": (SESSION.hello(version=b"\1\1"), "CurveZMQ 1.1"),
    "of version 2.0": (SESSION.hello(version=b"\2\0"), "CurveZMQ 2.0"),
    "with padding": (SESSION.hello(padding=bytes(71) + b"\1"), "padding"),
    "with a proof": (SESSION.hello(proof=bytes(63) + b"\1"), "box of HELLO is not zero"),
    "of another client": (SESSION.hello(key=OTHER.public), "another public key"),
    "to another server": (SESSION.hello(to=OTHER.public), "another public key"),
}


@pytest.mark.parametrize("case", HELLOS)
def test_a_server_refuses_a_hello(case: str) -> None:
    command, reason = HELLOS[case]
    assert refused(a_server(), command, reason).tell == b""


@pytest.mark.parametrize("key", SMALL_ORDER)
def test_a_server_refuses_keys_that_hide_nothing(key: bytes) -> None:
    refused(a_server(), SESSION.hello(key=key), "HELLO has a public key that hides nothing")
    server, short, cookie = waiting()
    command = SESSION.initiate(short, cookie, key=key)
    refused(server, command, "the vouch has a public key that hides nothing")


def waiting() -> tuple[CurveServer, bytes, bytes]:
    """Return a server that waits for INITIATE, its S' and its cookie."""
    server = a_server()
    welcome = server.receive(SESSION.hello())
    assert welcome is not None
    return server, *SESSION.open_welcome(welcome)


def metadata(size: int) -> bytes:
    return b"\x01X" + (size - 6).to_bytes(4) + bytes(size - 6)


INITIATES: dict[str, tuple[Callable[[bytes, bytes], bytes], str]] = {
    "HELLO": (lambda _, __: SESSION.hello(), "expected the command INITIATE"),
    "of another name": (
        lambda key, cookie: SESSION.initiate(key, cookie, name=b"\x08INITIATF"),
        "expected the command INITIATE",
    ),
    "too short": (
        lambda key, cookie: SESSION.initiate(key, cookie, metadata=b"")[:-1],
        "256 bytes; expected at least 257 and at most 1281",
    ),
    "too long": (
        lambda key, cookie: SESSION.initiate(key, cookie, metadata=metadata(MAX_METADATA + 1)),
        "1282 bytes",
    ),
    "with another cookie": (lambda key, _: SESSION.initiate(key, bytes(96)), "another cookie"),
    "with the number of HELLO": (
        lambda key, cookie: SESSION.initiate(key, cookie, nonce=1),
        "INITIATE is out of order",
    ),
    "with a number too high": (
        lambda key, cookie: SESSION.initiate(key, cookie, nonce=3),
        "INITIATE is out of order",
    ),
    "made with another key": (
        lambda key, cookie: Session(CLIENT.secret, SERVER.secret, b"x" * 32).initiate(key, cookie),
        "INITIATE was changed on the way, or made with another key",
    ),
    "to another key": (
        lambda _, cookie: SESSION.initiate(OTHER.public, cookie),
        "INITIATE was changed on the way, or made with another key",
    ),
    "with the key of another": (
        lambda key, cookie: SESSION.initiate(key, cookie, key=OTHER.public),
        "the vouch was changed on the way, or made with another key",
    ),
    "with a vouch of another": (
        lambda key, cookie: SESSION.initiate(
            key, cookie, vouch=SESSION.vouch(key, by=OTHER.secret)
        ),
        "the vouch was changed on the way, or made with another key",
    ),
    "with a vouch to the permanent key": (
        lambda key, cookie: SESSION.initiate(key, cookie, vouch=SESSION.vouch(SERVER.public)),
        "the vouch was changed on the way, or made with another key",
    ),
    "with something else for a vouch": (
        lambda key, cookie: SESSION.initiate(
            key, cookie, vouch=SESSION.vouch(key, prefix=b"WELCOME-")
        ),
        "the vouch was changed on the way, or made with another key",
    ),
    "with a vouch for another connection": (
        lambda key, cookie: SESSION.initiate(
            key, cookie, vouch=SESSION.vouch(key, of=OTHER.public)
        ),
        "the vouch is for the key of another connection",
    ),
    "with a vouch for another server": (
        lambda key, cookie: SESSION.initiate(
            key, cookie, vouch=SESSION.vouch(key, for_=OTHER.public)
        ),
        "the vouch is for another server",
    ),
    "with malformed metadata": (
        lambda key, cookie: SESSION.initiate(key, cookie, metadata=METADATA[:-1]),
        "metadata",
    ),
}


@pytest.mark.parametrize("case", INITIATES)
def test_a_server_refuses_an_initiate(case: str) -> None:
    made, reason = INITIATES[case]
    server, key, cookie = waiting()
    assert refused(server, made(key, cookie), reason).tell == b""


def test_a_server_asks_of_proved_keys_only() -> None:
    for case, (made, _) in INITIATES.items():
        server, key, cookie = waiting()
        asked: list[bytes] = []
        server._admit = asked.append
        with pytest.raises(HandshakeError):
            server.receive(made(key, cookie))
        assert not asked, case


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\x01X\0\0\0\0\x01x\0\0\0\0", "a name twice"),
        (b"\x01x\0\0\0\0\x01y\0\0\0\0\x01x\0\0\0\x01!", "a name twice"),
        (b"\x00\0\0\0\0", "malformed"),
        (b"\x01", "malformed"),
        (b"\x01x\0\0\0", "malformed"),
        (b"\x01x\0\0\0\x02!", "malformed"),
        (b"\x01x\xff\xff\xff\xff!", "malformed"),
        (b"\xffx\0\0\0\0", "malformed"),
    ],
)
def test_metadata_is_refused_by_both_ends_which_tell_nothing(sent: bytes, reason: str) -> None:
    server, key, cookie = waiting()
    assert refused(server, SESSION.initiate(key, cookie, metadata=sent), reason).tell == b""
    client, session = greeted()
    assert refused(client, session.ready(metadata=sent), reason).tell == b""


def test_names_in_metadata_have_no_case_and_unknown_ones_are_kept() -> None:
    server, key, cookie = waiting()
    sent = b"\x0bSOCKET-type\0\0\0\x06DEALER\x05X-New\0\0\0\x01!"
    assert server.receive(SESSION.initiate(key, cookie, metadata=sent)) is not None
    assert server.metadata == {b"socket-type": b"DEALER", b"x-new": b"!"}


@given(st.binary(max_size=60))
def test_any_metadata_is_read_or_refused(sent: bytes) -> None:
    server, key, cookie = waiting()
    with contextlib.suppress(HandshakeError):
        server.receive(SESSION.initiate(key, cookie, metadata=sent))
        assert sum(len(name) + len(value) + 5 for name, value in server.metadata.items()) == len(
            sent
        )


@pytest.mark.parametrize("size", [0, 7, MAX_METADATA])
def test_metadata_may_have_any_size_up_to_the_bound(size: int) -> None:
    server, key, cookie = waiting()
    sent = metadata(size) if size else b""
    assert server.receive(SESSION.initiate(key, cookie, metadata=sent)) is not None
    assert server.metadata == ({b"x": bytes(size - 6)} if size else {})
    client, session = greeted()
    assert client.receive(session.ready(metadata=sent)) is None
    assert client.metadata == server.metadata


@pytest.mark.parametrize("start", [0, 1, 2**63, 2**64 - 4])
def test_a_peer_may_begin_to_count_anywhere(start: int) -> None:
    server = a_server()
    welcome = server.receive(SESSION.hello(nonce=start))
    assert welcome is not None
    key, cookie = SESSION.open_welcome(welcome)
    assert server.receive(SESSION.initiate(key, cookie, nonce=start + 1)) is not None
    session = Session(CLIENT.secret, SERVER.secret, SESSION.short_client, dice("server")(32))
    for more in (2, 3):
        body = session.message(b"C", start + more, b"\0x")
        assert server.unseal(body) == (b"x", False, False)
    client, session = greeted()
    client.receive(session.ready(nonce=start))
    for more in (1, 2):
        body = session.message(b"S", start + more, b"\0y")
        assert client.unseal(body) == (b"y", False, False)


def test_nothing_follows_the_last_number() -> None:
    server = a_server()
    welcome = server.receive(SESSION.hello(nonce=2**64 - 1))
    assert welcome is not None
    key, cookie = SESSION.open_welcome(welcome)
    refused(server, SESSION.initiate(key, cookie, nonce=0), "INITIATE is out of order")


# What a client refuses.


def greeted() -> tuple[CurveClient, Session]:
    """Return a client that waits for READY, and its session."""
    client = a_client()
    client.start()
    session = Session(CLIENT.secret, SERVER.secret, dice("client")(32), b"s" * 32)
    assert client.receive(session.welcome()) is not None
    return client, session


WELCOMES: dict[str, tuple[Callable[[Session], bytes], str]] = {
    "empty": (lambda _: b"", "expected the command WELCOME"),
    "READY": (lambda one: one.ready(), "expected the command WELCOME"),
    "of another name": (lambda one: one.welcome(name=b"\x07WELCOMF"), "expected the command"),
    "too short": (lambda one: one.welcome()[:-1], "WELCOME has 167 bytes"),
    "too long": (lambda one: one.welcome() + b"\0", "WELCOME has 169 bytes"),
    "of another server": (lambda one: one.welcome(by=OTHER.secret), "WELCOME was changed"),
    "to another client": (lambda one: one.welcome(to=OTHER.public), "WELCOME was changed"),
}


@pytest.mark.parametrize("case", WELCOMES)
def test_a_client_refuses_a_welcome(case: str) -> None:
    made, reason = WELCOMES[case]
    client = a_client()
    client.start()
    session = Session(CLIENT.secret, SERVER.secret, dice("client")(32))
    assert refused(client, made(session), reason).tell == b""
    assert client._greeting == b""


READIES: dict[str, tuple[Callable[[Session], bytes], str]] = {
    "WELCOME": (lambda one: one.welcome(), "expected the command READY"),
    "of another name": (lambda one: one.ready(name=b"\x05REEDY"), "expected the command READY"),
    "too short": (lambda one: one.ready(metadata=b"")[:-1], "READY has 29 bytes"),
    "too long": (lambda one: one.ready(metadata=metadata(MAX_METADATA + 1)), "READY has 1055"),
    "of another server": (lambda one: one.ready(by=OTHER.secret), "READY was changed"),
    "with malformed metadata": (lambda one: one.ready(metadata=b"\1X\0\0\0\1"), "metadata"),
}


@pytest.mark.parametrize("case", READIES)
def test_a_client_refuses_a_ready(case: str) -> None:
    made, reason = READIES[case]
    client, session = greeted()
    assert refused(client, made(session), reason).tell == b""


@pytest.mark.parametrize("key", SMALL_ORDER)
def test_a_client_refuses_keys_that_hide_nothing(key: bytes) -> None:
    with pytest.raises(ValueError, match="small order hides nothing"):
        a_client(key)
    client = a_client()
    client.start()
    session = Session(CLIENT.secret, SERVER.secret, dice("client")(32))
    refused(client, session.welcome(key=key), "WELCOME has a public key that hides nothing")


ERRORS = {
    b"\x05ERROR\x03400": "^it does not accept our key$",
    b"\x05ERROR\x00": "^it refused the connection: ''$",
    b"\x05ERROR\x03a ~": "^it refused the connection: 'a ~'$",
    b"\x05ERROR\x04busy": "^it refused the connection: 'busy'$",
    b"\x05ERROR\xff" + b"x" * 255: "^it refused the connection: 'x{79}$",
    b"\x05ERROR": "^a malformed ERROR$",
    b"\x05ERROR\x05busy": "^a malformed ERROR$",
    b"\x05ERROR\x03busy": "^a malformed ERROR$",
    b"\x05ERROR\x04bus\n": "^a malformed ERROR$",
    b"\x05ERROR\x04bus\x7f": "^a malformed ERROR$",
    b"\x05ERROR\x04bus\xe9": "^a malformed ERROR$",
}


@pytest.mark.parametrize("command", ERRORS)
def test_a_client_is_told_why_it_is_refused(command: bytes) -> None:
    client = a_client()
    client.start()
    refused(client, command, ERRORS[command])
    client, _ = greeted()
    refused(client, command, ERRORS[command])


def test_a_server_takes_no_error() -> None:
    refused(a_server(), b"\x05ERROR\x03400", "expected the command HELLO")


def test_nothing_is_received_before_the_start_or_after_the_handshake() -> None:
    refused(a_client(), b"\x05ERROR\x03400", "before or after the handshake")
    refused(a_client(), SESSION.welcome(), "before or after the handshake")
    for end in a_pair():
        refused(end, b"\x05ERROR\x03400", "after the handshake")


def test_a_handshake_starts_once() -> None:
    client = a_client()
    client.start()
    with pytest.raises(HandshakeError, match="started before"):
        client.start()


# Traffic.

frames = st.lists(
    st.tuples(
        st.booleans(),  # from the client
        st.binary(max_size=300) | st.integers(0, 70_000).map(bytes),
        st.sampled_from([(False, False), (True, False), (False, True)]),
    ),
    max_size=20,
)


@given(frames)
def test_frames_arrive_as_they_were_sent(sent: list[tuple[bool, bytes, tuple[bool, bool]]]) -> None:
    client, server = a_pair()
    on_the_way: dict[bool, list[bytes]] = {True: [], False: []}
    for from_client, frame, (more, command) in sent:
        end = client if from_client else server
        body = end.seal(frame, more=more, command=command)
        assert len(body) == OVERHEAD + len(frame)
        assert len(frame) < 8 or frame not in body[16:]
        on_the_way[from_client].append(body)
    for from_client, bodies in on_the_way.items():
        end = server if from_client else client
        expected = [(frame, *flags) for sender, frame, flags in sent if sender is from_client]
        assert [end.unseal(body) for body in bodies] == expected


def ready_by_hand() -> tuple[CurveServer, Session]:
    """Return a server that has got number 2 from its client, and its session."""
    server, key, cookie = waiting()
    assert server.receive(SESSION.initiate(key, cookie)) is not None
    return server, Session(CLIENT.secret, SERVER.secret, SESSION.short_client, dice("server")(32))


MESSAGES: dict[str, tuple[Callable[[Session], bytes], str]] = {
    "empty": (lambda _: b"", "expected the command MESSAGE"),
    "of another name": (
        lambda one: one.message(b"C", 3, b"\0", name=b"\x07MESSAGF"),
        "expected the command MESSAGE",
    ),
    "without flags": (
        lambda one: one.message(b"C", 3, b""),
        "MESSAGE has 32 bytes; expected at least 33$",
    ),
    "of a name alone": (lambda _: b"\x07MESSAGE", "MESSAGE has 8 bytes"),
    "repeated": (lambda one: one.message(b"C", 2, b"\0"), "MESSAGE is out of order"),
    "too early": (lambda one: one.message(b"C", 4, b"\0"), "MESSAGE is out of order"),
    "of the other side": (lambda one: one.message(b"S", 3, b"\0"), "MESSAGE was changed"),
    "of another box": (
        lambda one: one.message(b"E", 3, b"\0", prefix=b"CurveZMQINITIAT"),
        "MESSAGE was changed",
    ),
    "with the flags 3": (lambda one: one.message(b"C", 3, b"\3x"), "the unknown flags 0x03"),
    "with the flags 4": (lambda one: one.message(b"C", 3, b"\4x"), "the unknown flags 0x04"),
    "with the flags 128": (lambda one: one.message(b"C", 3, b"\x80"), "the unknown flags 0x80"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_a_message_is_refused(case: str) -> None:
    made, reason = MESSAGES[case]
    server, session = ready_by_hand()
    with pytest.raises(HandshakeError, match=reason) as caught:
        server.unseal(made(session))
    assert caught.value.tell == b""
    over(server)


def test_no_nonce_is_used_after_the_last() -> None:
    client, server = a_pair()
    client._sent = server._received = 2**64 - 2
    body = client.seal(b"last", more=False, command=False)
    assert body[8:16] == b"\xff" * 8
    assert server.unseal(body) == (b"last", False, False)
    with pytest.raises(HandshakeError, match=r"all nonces .* used"):
        client.seal(b"", more=False, command=False)
    over(client)
    with pytest.raises(HandshakeError, match="out of order"):
        server.unseal(b"\x07MESSAGE" + bytes(8) + body[16:])


def test_keys_are_forgotten_when_the_connection_ends() -> None:
    for end in a_pair():
        assert end._short == b""
        assert len(end._shared) == 32
        end.close()
        over(end)
        end.close()
    client = a_client()
    client.start()
    client.close()
    over(client)
    assert client._greeting == b""
    server, _, _ = waiting()
    server.close()
    over(server)
    assert server._client == server._cookie == b""


def test_nothing_is_opened_before_the_handshake_is_complete() -> None:
    """Even if it is authentic: after WELCOME a client has the key of the traffic."""
    client, session = greeted()
    with pytest.raises(HandshakeError, match="before the handshake"):
        client.unseal(session.message(b"S", 1, b"\0early"))
    over(client)


def test_nothing_is_sealed_before_the_handshake_is_complete() -> None:
    for end in (greeted()[0], waiting()[0]):
        with pytest.raises(HandshakeError, match="before the handshake"):
            end.seal(b"early", more=False, command=False)


def test_keys_are_shown_nowhere() -> None:
    assert repr(CLIENT.secret) not in repr(CLIENT)
    assert "secret" not in repr(CLIENT)


@pytest.mark.parametrize("size", [0, 31, 33, 40])
def test_keys_have_32_bytes(size: int) -> None:
    for wrong in (
        lambda: KeyPair.of(bytes(size)),
        lambda: KeyPair(bytes(size), CLIENT.secret),
        lambda: KeyPair(CLIENT.public, bytes(size)),
        lambda: a_client(bytes(size)),
    ):
        with pytest.raises(ValueError, match=f"has 32 bytes, and this one has {size}$"):
            wrong()


def test_no_byte_beside_a_key_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyNaCl does not check the size."""
    monkeypatch.setattr(curve, "crypto_scalarmult_base", None)
    with pytest.raises(ValueError, match="has 32 bytes"):
        KeyPair.of(bytes(31))


def test_a_pair_is_of_its_secret() -> None:
    assert z85.encode(CLIENT.public) == b"Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
    assert z85.encode(SERVER.public) == b"rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
