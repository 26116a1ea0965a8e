"""CURVE written a second time, straight from the RFC's grammar, so that each field can be wrong.

Nothing here is shared with `kontrol.rpc.zmtp.curve`. A `Session` has all secrets of
both ends, and makes or opens each command with any fields.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from nacl.bindings import crypto_box, crypto_box_keypair, crypto_box_open, crypto_scalarmult_base

METADATA = b"\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
SERVER_METADATA = b"\x0bSocket-Type\x00\x00\x00\x06ROUTER"

# Points of small order: whatever the secret key, what is shared with them is known to all.
SMALL_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
    bytes(31) + b"\x80",
]


def dice(seed: object = 0) -> Callable[[int], bytes]:
    """Return random bytes that are the same in each run."""
    return Random(str(seed)).randbytes


def public(secret: bytes) -> bytes:
    return crypto_scalarmult_base(secret)


def number(value: int) -> bytes:
    return value.to_bytes(8, "big")


@dataclass
class Session:
    """All keys of one connection, and every command as its fields say."""

    client: bytes  # secret keys
    server: bytes
    short_client: bytes = field(default_factory=lambda: crypto_box_keypair()[1])
    short_server: bytes = field(default_factory=lambda: crypto_box_keypair()[1])
    cookie: bytes = b"c" * 96

    def hello(
        self,
        *,
        name: bytes = b"\x05HELLO",
        version: bytes = b"\x01\x00",
        padding: bytes = bytes(72),
        key: bytes | None = None,
        nonce: int = 1,
        proof: bytes = bytes(64),
        to: bytes | None = None,
    ) -> bytes:
        box = crypto_box(
            proof,
            b"CurveZMQHELLO---" + number(nonce),
            to or public(self.server),
            self.short_client,
        )
        key = key or public(self.short_client)
        return name + version + padding + key + number(nonce) + box

    def open_welcome(self, welcome: bytes) -> tuple[bytes, bytes]:
        """Return S' and the cookie."""
        assert len(welcome) == 168
        assert welcome[:8] == b"\x07WELCOME"
        plain = crypto_box_open(
            welcome[24:], b"WELCOME-" + welcome[8:24], public(self.server), self.short_client
        )
        return plain[:32], plain[32:]

    def welcome(
        self,
        *,
        name: bytes = b"\x07WELCOME",
        key: bytes | None = None,
        nonce: bytes = b"w" * 16,
        by: bytes | None = None,
        to: bytes | None = None,
    ) -> bytes:
        box = crypto_box(
            (key or public(self.short_server)) + self.cookie,
            b"WELCOME-" + nonce,
            to or public(self.short_client),
            by or self.server,
        )
        return name + nonce + box

    def vouch(
        self,
        short_server: bytes,
        *,
        of: bytes | None = None,
        for_: bytes | None = None,
        by: bytes | None = None,
        prefix: bytes = b"VOUCH---",
    ) -> bytes:
        plain = (of or public(self.short_client)) + (for_ or public(self.server))
        nonce = b"v" * 16
        return nonce + crypto_box(plain, prefix + nonce, short_server, by or self.client)

    def initiate(
        self,
        short_server: bytes,
        cookie: bytes,
        *,
        name: bytes = b"\x08INITIATE",
        nonce: int = 2,
        key: bytes | None = None,
        vouch: bytes | None = None,
        metadata: bytes = METADATA,
    ) -> bytes:
        plain = (key or public(self.client)) + (vouch or self.vouch(short_server)) + metadata
        box = crypto_box(
            plain, b"CurveZMQINITIATE" + number(nonce), short_server, self.short_client
        )
        return name + cookie + number(nonce) + box

    def open_initiate(self, initiate: bytes) -> tuple[bytes, bytes, bytes, bytes]:
        """Return the cookie, C, what the vouch says, and the metadata."""
        assert initiate[:9] == b"\x08INITIATE"
        nonce = b"CurveZMQINITIATE" + initiate[105:113]
        plain = crypto_box_open(initiate[113:], nonce, public(self.short_client), self.short_server)
        key, vouch = plain[:32], plain[32:128]
        vouched = crypto_box_open(vouch[16:], b"VOUCH---" + vouch[:16], key, self.short_server)
        return initiate[9:105], key, vouched, plain[128:]

    def ready(
        self,
        *,
        name: bytes = b"\x05READY",
        nonce: int = 1,
        metadata: bytes = SERVER_METADATA,
        by: bytes | None = None,
    ) -> bytes:
        box = crypto_box(
            metadata,
            b"CurveZMQREADY---" + number(nonce),
            public(self.short_client),
            by or self.short_server,
        )
        return name + number(nonce) + box

    def open_ready(self, ready: bytes) -> bytes:
        assert ready[:6] == b"\x05READY"
        nonce = b"CurveZMQREADY---" + ready[6:14]
        return crypto_box_open(ready[14:], nonce, public(self.short_server), self.short_client)

    def message(
        self,
        side: bytes,
        nonce: int,
        plain: bytes,
        *,
        name: bytes = b"\x07MESSAGE",
        prefix: bytes = b"CurveZMQMESSAGE",
    ) -> bytes:
        """Return MESSAGE of the side `C` or `S`."""
        box = crypto_box(
            plain, prefix + side + number(nonce), public(self.short_server), self.short_client
        )
        return name + number(nonce) + box

    def open_message(self, side: bytes, body: bytes) -> bytes:
        assert body[:8] == b"\x07MESSAGE"
        nonce = b"CurveZMQMESSAGE" + side + body[8:16]
        return crypto_box_open(body[16:], nonce, public(self.short_server), self.short_client)
