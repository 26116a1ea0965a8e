"""CURVE (RFC 26/CURVEZMQ): each end proves its permanent key, and all traffic is encrypted.

Pure: commands and frames in and out as bytes; random bytes come from an argument.

Theory of operation. Four commands, then traffic. C and S are the permanent keys of client and
server, C' and S' those of this connection alone; `Box[x](A->B)` is x encrypted and authenticated
with the secret key of A and the public key of B, which only these two ends can make or open.

    client                                        server
    HELLO     C', Box[64 zeros](C'->S)       ->   opens: the client expects this server
              opens: this is the server      <-   WELCOME   Box[S', cookie](S->C')
    INITIATE  cookie, Box[C, vouch,          ->   opens: vouch = Box[C', S](C->S'), so the client
                metadata](C'->S')                 has the key C, and uses it for C' and for S
                                             <-   READY     Box[metadata](S'->C')
    MESSAGE   Box[flags, frame](C'->S')     <->   MESSAGE   Box[flags, frame](S'->C')

What is stricter here than in the RFC or in libzmq, and what the cookie is for, is in
docs/decisions/0173. Invariants:

- Nothing is passed on that its box does not prove; the first failure ends everything: the keys are
  forgotten, and whatever comes next raises.
- The numbers in the nonces rise by exactly one with each command, in both directions, so that
  nothing can be repeated, reordered or left out, and no nonce is ever used twice with a key.
- A reason of `HandshakeError` has no key and nothing decrypted in it. A client is told only that
  its key is refused; a server is never told anything.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

from nacl.bindings import (
    crypto_box_beforenm,
    crypto_box_easy_afternm,
    crypto_box_open_easy_afternm,
    crypto_scalarmult_base,
    sodium_memcmp,
)
from nacl.exceptions import CryptoError

from kontrol.rpc.zmtp.mechanism import HandshakeError, encode_metadata, parse_metadata

MAX_METADATA = 1024
"""Bytes of a peer's metadata. ZeroMQ's own are about 50; a routing id adds up to 255."""

OVERHEAD = 33
"""Bytes that a sealed frame is longer than the frame."""

_HELLO, _WELCOME, _INITIATE = b"\x05HELLO", b"\x07WELCOME", b"\x08INITIATE"
_READY, _ERROR, _MESSAGE = b"\x05READY", b"\x05ERROR", b"\x07MESSAGE"
_VERSION = b"\x01\x00"
_KEY = 32  # bytes of a key
_COOKIE = 96
_MORE, _COMMAND = 1, 2  # flags of a sealed frame; the latter is libzmq's, for heartbeats
_LAST = 2**64 - 1  # the greatest number of a nonce
_REFUSED = b"400"  # in ERROR: what ZAP (RFC 27) answers of a key that is not accepted

_OTHER_KEY = "it expects another public key here: it is of another cluster, or does not know ours"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A permanent key pair, 32 bytes each. Raises `ValueError` if they are not."""

    public: bytes
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        for name, key in (("public", self.public), ("secret", self.secret)):
            _check_size(f"a {name} key", key)

    @classmethod
    def of(cls, secret: bytes) -> Self:
        """Return the pair of a secret key: any 32 random bytes. Raises `ValueError`."""
        _check_size("a secret key", secret)
        return cls(crypto_scalarmult_base(secret), secret)


def is_public(key: bytes) -> bool:
    """Return whether a key can be a public one: 32 bytes, and not of small order."""
    try:
        crypto_box_beforenm(key, bytes(_KEY))  # any secret key tells
    except CryptoError:
        return False
    return True


class _Curve(ABC):
    """What both ends have in common: the traffic, and the counters in its nonces."""

    name: ClassVar[bytes] = b"CURVE"
    _seals: ClassVar[bytes]  # prefixes of the nonces of MESSAGE
    _opens: ClassVar[bytes]
    __slots__ = (
        *("_awaited", "_own", "_random", "_received", "_sent", "_shared", "_short"),
        *("metadata", "peer", "ready"),
    )

    def __init__(self, metadata: Mapping[bytes, bytes], random: Callable[[int], bytes]) -> None:
        self.ready = False
        self.metadata: Mapping[bytes, bytes] = {}
        self.peer = b""
        """The peer's permanent public key, once `ready`."""
        self._own = encode_metadata(metadata)
        self._random = random
        self._awaited = b""  # the command that is to come
        self._short = b""  # this connection's secret key, during the handshake
        self._shared = b""  # the key of C' and S'
        self._sent = 0  # the number in the last nonce, of ours and of the peer's
        self._received = 0

    def receive(self, command: bytes) -> bytes | None:
        """Take the body of a handshake command; return that of the answer, or None.

        Raises `HandshakeError`; then this end is closed.
        """
        try:
            return self._receive(command)
        except HandshakeError:
            self.close()
            raise

    def seal(self, frame: bytes, *, more: bool, command: bool) -> bytes:
        """Return the body of the MESSAGE that carries a frame; to be sent in the order of calls.

        Raises `HandshakeError` if this end is not ready, or its nonces are used up.
        """
        if not self.ready:
            raise HandshakeError("nothing can be encrypted before the handshake or after the end")
        flags = (_MORE if more else 0) | (_COMMAND if command else 0)
        number = self._next()
        box = crypto_box_easy_afternm(bytes((flags,)) + frame, self._seals + number, self._shared)
        return _MESSAGE + number + box

    def unseal(self, body: bytes) -> tuple[bytes, bool, bool]:
        """Return what a MESSAGE carries: the frame, whether more follow, whether it is a command.

        Raises `HandshakeError`; then this end is closed.
        """
        try:
            if not self.ready:
                raise HandshakeError("a message before the handshake or after the end")
            _check(body, _MESSAGE, OVERHEAD, _LAST)
            self._follow(body[8:16], "MESSAGE")
            plain = _open(body[16:], self._opens + body[8:16], self._shared, "MESSAGE")
            flags = plain[0]
            if flags not in {0, _MORE, _COMMAND}:
                raise HandshakeError(f"MESSAGE has the unknown flags 0x{flags:02x}")
        except HandshakeError:
            self.close()
            raise
        return plain[1:], flags == _MORE, flags == _COMMAND

    def close(self) -> None:
        """Forget the keys of the connection: nothing is sealed or opened any more."""
        self.ready = False
        self._awaited = self._short = self._shared = b""

    @abstractmethod
    def _receive(self, command: bytes) -> bytes | None:
        """Take a handshake command; return the answer, or None. Raises `HandshakeError`."""

    def _next(self) -> bytes:
        """Return the number of our next nonce, 8 bytes. Raises `HandshakeError` after the last."""
        if self._sent >= _LAST:
            self.close()
            raise HandshakeError("all nonces of this connection are used: connect again")
        self._sent += 1
        return self._sent.to_bytes(8)

    def _follow(self, number: bytes, what: str) -> None:
        """Check that the number of the peer's nonce is the next. Raises `HandshakeError`."""
        if int.from_bytes(number) != self._received + 1:
            raise HandshakeError(f"{what} is out of order: repeated, reordered, or one is missing")
        self._received += 1

    def _agree(self, metadata: bytes) -> None:
        """Take the peer's metadata, decrypted. Raises `HandshakeError`, of which none is told."""
        try:
            self.metadata = parse_metadata(metadata)
        except HandshakeError as error:
            raise HandshakeError(str(error)) from None


class CurveServer(_Curve):
    """The end that listens. `admit` judges a client's permanent public key, once it is proved.

    It returns None if the key is accepted, or else the reason, which is not told to the client.
    """

    _seals, _opens = b"CurveZMQMESSAGES", b"CurveZMQMESSAGEC"
    __slots__ = ("_admit", "_client", "_cookie", "_keys")

    def __init__(
        self,
        keys: KeyPair,
        admit: Callable[[bytes], str | None],
        metadata: Mapping[bytes, bytes],
        random: Callable[[int], bytes],
    ) -> None:
        super().__init__(metadata, random)
        self._keys = keys
        self._admit = admit
        self._awaited = _HELLO
        self._client = b""  # C'
        self._cookie = b""

    def start(self) -> None:
        """Return None: the client begins."""

    def close(self) -> None:
        """Forget the keys of the connection: nothing is sealed or opened any more."""
        super().close()
        self._client = self._cookie = b""

    def _receive(self, command: bytes) -> bytes:
        if self._awaited == _HELLO:
            return self._welcome(command)
        if self._awaited == _INITIATE:
            return self._initiated(command)
        raise HandshakeError("a handshake command after the handshake")

    def _welcome(self, hello: bytes) -> bytes:
        _check(hello, _HELLO, 200, 200)
        if hello[6:8] != _VERSION:
            raise HandshakeError(f"HELLO is of CurveZMQ {hello[6]}.{hello[7]}; expected 1.0")
        if hello[8:80] != bytes(72):  # it makes HELLO longer than its answer
            raise HandshakeError("the padding of HELLO is not zero")
        self._client = hello[80:112]
        shared = _share(self._client, self._keys.secret, "HELLO")
        try:
            proof = _open(hello[120:], b"CurveZMQHELLO---" + hello[112:120], shared, "HELLO")
        except HandshakeError:
            raise HandshakeError(_OTHER_KEY) from None
        if not sodium_memcmp(proof, bytes(64)):
            raise HandshakeError("the box of HELLO is not zero")
        self._received = int.from_bytes(hello[112:120])
        self._short = self._random(_KEY)
        self._cookie = self._random(_COOKIE)
        nonce = self._random(16)
        plain = crypto_scalarmult_base(self._short) + self._cookie
        self._awaited = _INITIATE
        return _WELCOME + nonce + crypto_box_easy_afternm(plain, b"WELCOME-" + nonce, shared)

    def _initiated(self, initiate: bytes) -> bytes:
        _check(initiate, _INITIATE, 257, 257 + MAX_METADATA)
        if not sodium_memcmp(initiate[9:105], self._cookie):
            raise HandshakeError("INITIATE has another cookie than WELCOME had")
        self._follow(initiate[105:113], "INITIATE")
        shared = _share(self._client, self._short, "INITIATE")
        nonce = b"CurveZMQINITIATE" + initiate[105:113]
        plain = _open(initiate[113:], nonce, shared, "INITIATE")
        client, vouch = plain[:32], plain[32:128]
        vouching = _share(client, self._short, "the vouch")
        vouched = _open(vouch[16:], b"VOUCH---" + vouch[:16], vouching, "the vouch")
        if not sodium_memcmp(vouched[:32], self._client):
            raise HandshakeError("the vouch is for the key of another connection")
        if not sodium_memcmp(vouched[32:], self._keys.public):
            raise HandshakeError("the vouch is for another server")
        self._agree(plain[128:])
        refusal = self._admit(client)
        if refusal is not None:
            raise HandshakeError(refusal, tell=_REFUSED)
        number = self._next()
        box = crypto_box_easy_afternm(self._own, b"CurveZMQREADY---" + number, shared)
        self.close()  # what served the handshake alone
        self.peer, self._shared, self.ready = client, shared, True
        return _READY + number + box


class CurveClient(_Curve):
    """The end that connects to the server with the permanent public key `server`.

    Raises `ValueError` if that is not one: not 32 bytes, or of small order.
    """

    _seals, _opens = b"CurveZMQMESSAGEC", b"CurveZMQMESSAGES"
    __slots__ = ("_greeting", "_keys", "_public", "_server")

    def __init__(
        self,
        keys: KeyPair,
        server: bytes,
        metadata: Mapping[bytes, bytes],
        random: Callable[[int], bytes],
    ) -> None:
        _check_size("a server's public key", server)
        super().__init__(metadata, random)
        self._keys = keys
        self._server = server
        self._short = random(_KEY)
        self._public = crypto_scalarmult_base(self._short)  # C'
        try:
            self._greeting = crypto_box_beforenm(server, self._short)  # the key of C' and S
        except CryptoError:
            raise ValueError("a server's public key of small order hides nothing") from None

    def start(self) -> bytes:
        """Return HELLO, once. Raises `HandshakeError` the second time."""
        if self._sent:
            raise HandshakeError("the handshake was started before")
        number = self._next()
        box = crypto_box_easy_afternm(bytes(64), b"CurveZMQHELLO---" + number, self._greeting)
        self._awaited = _WELCOME
        return _HELLO + _VERSION + bytes(72) + self._public + number + box

    def close(self) -> None:
        """Forget the keys of the connection: nothing is sealed or opened any more."""
        super().close()
        self._greeting = b""

    def _receive(self, command: bytes) -> bytes | None:
        if self._awaited and command.startswith(_ERROR):
            raise HandshakeError(_told(command))
        if self._awaited == _WELCOME:
            return self._initiate(command)
        if self._awaited == _READY:
            self._complete(command)
            return None
        raise HandshakeError("a handshake command before or after the handshake")

    def _initiate(self, welcome: bytes) -> bytes:
        _check(welcome, _WELCOME, 168, 168)
        nonce = b"WELCOME-" + welcome[8:24]
        plain = _open(welcome[24:], nonce, self._greeting, "WELCOME")
        server, cookie = plain[:32], plain[32:]
        self._shared = _share(server, self._short, "WELCOME")
        nonce = self._random(16)
        vouched = self._public + self._server
        vouching = _share(server, self._keys.secret, "WELCOME")
        vouch = nonce + crypto_box_easy_afternm(vouched, b"VOUCH---" + nonce, vouching)
        number = self._next()
        plain = self._keys.public + vouch + self._own
        box = crypto_box_easy_afternm(plain, b"CurveZMQINITIATE" + number, self._shared)
        self._awaited = _READY
        return _INITIATE + cookie + number + box

    def _complete(self, ready: bytes) -> None:
        _check(ready, _READY, 30, 30 + MAX_METADATA)
        shared = self._shared
        plain = _open(ready[14:], b"CurveZMQREADY---" + ready[6:14], shared, "READY")
        self._received = int.from_bytes(ready[6:14])
        self._agree(plain)
        self.close()  # what served the handshake alone
        self.peer, self._shared, self.ready = self._server, shared, True


def _check_size(what: str, key: bytes) -> None:
    if len(key) != _KEY:
        raise ValueError(f"{what} has {_KEY} bytes, and this one has {len(key)}")


def _check(command: bytes, name: bytes, least: int, most: int) -> None:
    """Check a command's name and size. Raises `HandshakeError`."""
    if not command.startswith(name):
        raise HandshakeError(f"expected the command {_text(name[1:])}")
    if not least <= len(command) <= most:
        raise HandshakeError(
            f"{_text(name[1:])} has {len(command)} bytes; expected at least {least}"
            + (f" and at most {most}" if most < _LAST else "")
        )


def _share(public: bytes, secret: bytes, what: str) -> bytes:
    """Return the key of two ends. Raises `HandshakeError` for a public key that hides nothing."""
    try:
        return crypto_box_beforenm(public, secret)
    except CryptoError:
        raise HandshakeError(f"{what} has a public key that hides nothing") from None


def _open(box: bytes, nonce: bytes, shared: bytes, what: str) -> bytes:
    """Return what a box holds. Raises `HandshakeError`."""
    try:
        return crypto_box_open_easy_afternm(box, nonce, shared)
    except CryptoError:
        raise HandshakeError(f"{what} was changed on the way, or made with another key") from None


def _told(error: bytes) -> str:
    """Return what an ERROR tells. It is not authenticated: anyone on the way can have sent it."""
    reason = error[7:]
    if len(error) < 7 or len(reason) != error[6] or not all(0x20 <= one < 0x7F for one in reason):
        return "a malformed ERROR"
    if reason == _REFUSED:
        return "it does not accept our key"
    return f"it refused the connection: {_text(reason)!r:.80}"


def _text(data: bytes) -> str:
    return data.decode("ascii")
