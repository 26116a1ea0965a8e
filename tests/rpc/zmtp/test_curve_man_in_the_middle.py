"""CURVE with an attacker on the way, who changes, repeats, reorders and drops what is sent.

Nothing is accepted that was not sent so, and nothing is told: the only exception is
`HandshakeError`, whose reason is one of few, whatever the keys and the payload are.
"""

import copy
import re
import traceback
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.rpc.zmtp.curve_by_hand import dice
from tests.rpc.zmtp.test_curve import (
    CLIENT,
    SERVER,
    a_client,
    a_pair,
    a_server,
    commands,
)
from zmq.utils import z85

from kontrol.rpc.zmtp.curve import CurveClient, CurveServer
from kontrol.rpc.zmtp.mechanism import HandshakeError

End = CurveClient | CurveServer
TRAFFIC = ("INITIATE", "MESSAGE")
NAMES = ("HELLO", "WELCOME", "INITIATE", "READY")


class Handshake:
    """A handshake whose command `at` (0 to 3) is on the way; each try has copies of both ends."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.client, self.server = a_client(), a_server()
        command: bytes | None = self.client.start()
        for step in range(at):
            assert command is not None
            command = self._to(step).receive(command)
        assert command is not None
        self.command = command

    def _to(self, step: int) -> End:
        return self.client if step % 2 else self.server

    def deliver(self, command: bytes) -> list[bool]:
        """Deliver another command in its place, and go on; say which ends are ready finally."""
        client, server = copy.copy(self.client), copy.copy(self.server)
        answer: bytes | None = command
        step = self.at
        while answer is not None and step < 4:
            end = client if step % 2 else server
            try:
                answer = end.receive(answer)
            except HandshakeError as error:
                harmless(error)
                assert not end.ready
                answer = error.tell or None
                break
            step += 1
        return [client.ready, server.ready]


SECRETS = [CLIENT.secret, SERVER.secret, dice("client")(32), dice("server")(32)]
KNOWN = [CLIENT.public, SERVER.public]
REASONS = {
    *(f"expected the command {name}" for name in (*NAMES, "MESSAGE")),
    *(f"{name} has # bytes; expected at least # and at most #" for name in NAMES),
    "MESSAGE has # bytes; expected at least #",
    "HELLO is of CurveZMQ #.#; expected #.#",
    "the padding of HELLO is not zero",
    "HELLO has a public key that hides nothing",
    "it expects another public key here: it is of another cluster, or does not know ours",
    "INITIATE has another cookie than WELCOME had",
    *(f"{name} is out of order: repeated, reordered, or one is missing" for name in TRAFFIC),
    *(
        f"{name} was changed on the way, or made with another key"
        for name in ("WELCOME", "READY", *TRAFFIC)
    ),
    "the vouch is for the key of another connection",
    "it does not accept our key",
    "a malformed ERROR",
    "a handshake command after the handshake",
    "a handshake command before or after the handshake",
    "a message before the handshake or after the end",
}


def harmless(error: HandshakeError) -> None:
    """See that nothing is told by an error, nor by its traceback."""
    assert error.tell in {b"", b"400"}
    assert error.__cause__ is None
    reason = str(error)
    if not reason.startswith("it refused the connection: "):  # what ERROR says, for all to read
        assert re.sub(r"\d+", "#", reason) in REASONS
    told = "".join(traceback.format_exception(error))
    assert told.isascii()
    for key in SECRETS + KNOWN:
        for shown in (key.hex(), z85.encode(key).decode(), repr(key)[2:-1]):
            assert shown not in told


def changes(command: bytes) -> Iterator[bytes]:
    """Yield the command with each bit changed, and of each other length."""
    for at in range(len(command)):
        for bit in range(8):
            changed = bytearray(command)
            changed[at] ^= 1 << bit
            yield bytes(changed)
    for size in range(len(command)):
        yield command[:size]
    yield command + b"\0"
    yield command + command


@pytest.mark.parametrize("at", range(4), ids=NAMES)
def test_a_handshake_with_any_bit_changed_or_missing_completes_at_no_end_that_got_it(
    at: int,
) -> None:
    handshake = Handshake(at)
    assert handshake.deliver(handshake.command) == [True, True]
    for changed in changes(handshake.command):
        client, server = handshake.deliver(changed)
        assert not client
        # It is proved to the server before the last command.
        assert server is (at == 3)


@pytest.mark.parametrize("at", range(4), ids=NAMES)
def test_an_end_that_gets_any_other_command_of_a_handshake_is_over(at: int) -> None:
    sent = commands(a_client(), a_server())
    others = commands(a_client(seed="other client"), a_server(seed="other server"))
    handshake = Handshake(at)
    for other in (*sent[:at], *sent[at + 1 :], *others[1:]):
        assert handshake.deliver(other) == [False, at == 3]


def test_a_handshake_that_was_recorded_is_not_accepted_again() -> None:
    """The server's part of a recorded connection is new each time, so its INITIATE fits no more."""
    hello, _, initiate, _ = commands(a_client(), a_server())
    again = a_server(seed="again")
    assert again.receive(hello) is not None
    with pytest.raises(HandshakeError, match="another cookie"):
        again.receive(initiate)


def test_a_cookie_of_another_connection_is_not_accepted() -> None:
    """Else a recorded INITIATE would open a second connection with the same keys and nonces."""
    hello, welcome, initiate, _ = commands(a_client(), a_server())
    same_keys = a_server()
    assert same_keys.receive(hello) == welcome
    cookie = same_keys._cookie
    same_keys._cookie = bytes(96)
    with pytest.raises(HandshakeError, match="another cookie"):
        same_keys.receive(initiate)
    assert initiate[9:105] == cookie


def test_what_one_end_sent_is_not_accepted_back() -> None:
    for end in a_pair():
        for number in (1, 2, 3, 4):
            trial = copy.copy(end)
            trial._received = number - 1
            body = copy.copy(end)
            body._sent = number - 1
            with pytest.raises(HandshakeError, match="changed on the way"):
                trial.unseal(body.seal(b"mine", more=False, command=False))


@pytest.mark.parametrize("size", [0, 1, 200])
def test_a_message_with_any_bit_changed_or_missing_is_refused(size: int) -> None:
    client, server = a_pair()
    body = client.seal(bytes(size), more=False, command=False)
    for changed in changes(body):
        trial = copy.copy(server)
        with pytest.raises(HandshakeError) as caught:
            trial.unseal(changed)
        harmless(caught.value)
        with pytest.raises(HandshakeError):
            trial.unseal(body)
    assert server.unseal(body) == (bytes(size), False, False)


class Attack:
    """What is done to the bodies that are on the way in one direction."""

    def __init__(self, bodies: list[bytes], back: list[bytes]) -> None:
        self.bodies = bodies
        self.back = back

    def drop(self, at: int, _: int) -> None:
        del self.bodies[at]

    def repeat(self, at: int, to: int) -> None:
        self.bodies.insert(to, self.bodies[at])

    def swap(self, at: int, to: int) -> None:
        self.bodies[at], self.bodies[to] = self.bodies[to], self.bodies[at]

    def flip(self, at: int, bit: int) -> None:
        changed = bytearray(self.bodies[at] or b"\0")
        changed[bit // 8 % len(changed)] ^= 1 << bit % 8
        self.bodies[at] = bytes(changed)

    def cut(self, at: int, size: int) -> None:
        self.bodies[at] = self.bodies[at][: size % (len(self.bodies[at]) or 1)]

    def join(self, at: int, to: int) -> None:
        self.bodies[at] += self.bodies[to]

    def renumber(self, at: int, to: int) -> None:
        number = self.bodies[to][8:16]
        self.bodies[at] = self.bodies[at][:8] + number + self.bodies[at][16:]

    def reflect(self, at: int, to: int) -> None:
        self.bodies.insert(at, self.back[to % len(self.back)])

    def splice(self, at: int, to: int) -> None:
        one, other = self.bodies[at], self.bodies[to]
        self.bodies[at] = one[: len(one) // 2] + other[len(one) // 2 :]


ATTACKS = [name for name in vars(Attack) if not name.startswith("_")]
payloads = st.lists(
    st.tuples(st.binary(max_size=50), st.sampled_from([(False, False), (True, False)])),
    min_size=1,
    max_size=8,
)
attacks = st.lists(
    st.tuples(st.sampled_from(ATTACKS), st.integers(0, 10**6), st.integers(0, 10**6)), max_size=4
)


@given(payloads, attacks, st.booleans())
def test_what_arrives_is_the_beginning_of_what_was_sent(
    sent: list[tuple[bytes, tuple[bool, bool]]],
    attacks: list[tuple[str, int, int]],
    from_client: bool,
) -> None:
    sender, receiver = a_pair() if from_client else a_pair()[::-1]
    bodies = [sender.seal(one, more=more, command=command) for one, (more, command) in sent]
    back = [receiver.seal(one, more=more, command=command) for one, (more, command) in sent]
    attack = Attack(bodies.copy(), back)
    for name, at, to in attacks:
        if attack.bodies:
            size = len(attack.bodies)
            other = to if name in {"flip", "cut"} else to % size
            getattr(attack, name)(at % size, other)
    arrived: list[tuple[bytes, tuple[bool, bool]]] = []
    untouched = 0
    for body, original in zip(attack.bodies, bodies, strict=False):
        if body != original:
            break
        untouched += 1
    for body in attack.bodies:
        try:
            frame, more, command = receiver.unseal(body)
        except HandshakeError as error:
            harmless(error)
        else:
            arrived.append((frame, (more, command)))
    assert arrived == sent[:untouched]


@given(
    st.binary(max_size=400),
    st.sampled_from([b"", *(b"%c%s" % (len(n), n.encode()) for n in (*NAMES, "ERROR", "MESSAGE"))]),
)
def test_any_other_bytes_end_a_connection_with_one_error(data: bytes, name: bytes) -> None:
    waiting, ready = Handshake(1), a_pair()
    started, unstarted = copy.copy(waiting.client), a_client()
    for end in (started, unstarted, copy.copy(waiting.server), a_server(), *ready):
        trial = copy.copy(end)
        for method in (end.receive, trial.unseal):
            with pytest.raises(HandshakeError) as caught:
                method(name + data)
            harmless(caught.value)
        assert not end.ready
        assert not trial.ready
