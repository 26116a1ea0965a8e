"""Random and mutated input for port 8000: pure, the same for the same seed."""

import json
import random
import struct
from collections.abc import Callable, Sequence

import msgpack
from tests.rpc.support import GREETING, READY, framed

METHODS = ("ping", "echo", "count", "wait", "pods", "state", "leader", "invoke", "_zerorpc_inspect")
KEEPALIVE = {
    "app": "app",
    "id": "pod-1",
    "ip": "10.1.2.3",
    "key": "aHhuh",
    "role": "test",
    "nonce": "0123456789abcdef01234567",
    "n": 1,
    "payload": {"state": "READY", "list": [1, 2.5, None, "é"]},
}
BOUNDARIES = (0, 1, -1, 31, 32, 127, 128, 255, 256, 2**16, 2**31 - 1, 2**32, 2**63, 2**64 - 1)


class Mutants:
    """Makes messages, as their parts, and openings of connections, as bytes."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._opened: list[object] = [1]  # message ids of calls, for what follows up on them

    def message(self) -> list[bytes]:
        """Return the parts of one message."""
        chance = self._chance
        kind: Callable[[], bytes] = chance.choices(
            (self._valid, self._mutated, self._structure, self._noise), (15, 60, 15, 10)
        )[0]
        if chance.random() < 0.95:
            return [b"", kind()]
        parts = [
            chance.randbytes(chance.choice((0, 0, 1, 5, 40))) for _ in range(chance.randrange(12))
        ]
        return [*parts, kind()]

    def opening(self, heard: Sequence[bytes] = ()) -> bytes:
        """Return what a connection begins with, and perhaps ends; `heard` is of good ones."""
        chance = self._chance
        plain = (
            GREETING + READY + b"DEALER" + framed(b"", self._valid()[:255]),
            GREETING + READY + b"REQ",
            GREETING.replace(b"NULL\0", b"CURVE") + framed(b"\x05HELLO" + chance.randbytes(194)),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            chance.randbytes(chance.randrange(200)),
        )
        return self.mutate(chance.choice((*plain, *heard)))

    def mutate(self, data: bytes) -> bytes:
        """Return `data` with a few changes, or none."""
        chance = self._chance
        changed = bytearray(data)
        for _ in range(chance.choice((0, 1, 1, 2, 5))):
            at = chance.randrange(len(changed) + 1)
            way = chance.randrange(6)
            if way == 0 and at < len(changed):
                changed[at] ^= 1 << chance.randrange(8)
            elif way == 1 and at < len(changed):
                changed[at] = chance.choice((0, 0x7F, 0x80, 0xC0, 0xC1, 0xDB, 0xDD, 0xDF, 0xFF))
            elif way == 2:
                del changed[at : at + chance.randrange(1, 9)]
            elif way == 3:
                changed[at:at] = chance.randbytes(chance.randrange(1, 9))
            elif way == 4:
                changed[at:at] = struct.pack(">BI", chance.choice((0xDB, 0xDD, 0xDF, 0xC6)), 2**31)
            else:
                del changed[at:]
        return bytes(changed)

    def _valid(self) -> bytes:
        chance = self._chance
        message_id: object = chance.choice(
            (chance.randbytes(8), str(chance.random()), chance.randrange(99))
        )
        header = {"message_id": message_id, "v": 3}
        args: object
        if chance.random() < 0.3:
            header["response_to"] = chance.choice(self._opened)
            name, args = chance.choice(
                (
                    ("_zpc_hb", [0]),
                    ("_zpc_more", [chance.choice(BOUNDARIES)]),
                    ("ERR", ["Cancelled", "", ""]),
                    ("OK", [1]),
                    ("STREAM", 1),
                    ("STREAM_DONE", None),
                )
            )
        else:
            name, args = chance.choice(METHODS), self._arguments()
            self._opened = [*self._opened[-20:], message_id]
        return self._packed([header, name, args])

    def _arguments(self) -> list[object]:
        chance = self._chance
        text = json.dumps(
            {**KEEPALIVE, chance.choice(list(KEEPALIVE)): self._value(2)},
            default=repr,
            skipkeys=True,
        )
        if chance.random() < 0.3:
            text = self.mutate(text.encode()).decode("utf-8", "replace")
        return [chance.choice((text, 3, self._value(3)))] * chance.choice((1, 1, 1, 0, 2))

    def _mutated(self) -> bytes:
        return self.mutate(self._valid())

    def _structure(self) -> bytes:
        return self._packed(self._value(5))

    def _noise(self) -> bytes:
        return self._chance.randbytes(self._chance.choice((0, 1, 3, 20, 300)))

    def _packed(self, value: object) -> bytes:
        packed = msgpack.packb(value, use_bin_type=self._chance.random() < 0.5, default=repr)
        assert isinstance(packed, bytes)
        return packed

    def _value(self, depth: int) -> object:
        chance = self._chance
        way = chance.randrange(9 if depth else 7)
        if way == 7:
            return [self._value(depth - 1) for _ in range(chance.randrange(5))]
        if way == 8:
            return {self._value(0): self._value(depth - 1) for _ in range(chance.randrange(5))}
        return (
            None,
            chance.random() < 0.5,
            chance.choice(BOUNDARIES),
            chance.choice((0.5, float("inf"), float("nan"), -0.0)),
            chance.choice(("", "x" * 300, "é\n\0", "message_id", "v", "response_to")),
            chance.randbytes(chance.randrange(20)),
            chance.choice(METHODS),
        )[way]
