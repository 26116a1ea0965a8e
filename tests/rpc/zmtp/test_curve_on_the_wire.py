"""A real server and real clients with keys, and an attacker between them who works on frames."""

import asyncio
import contextlib
import logging
from collections import Counter
from pathlib import Path

import pytest
from tests.rpc.keyed import caller, cluster, guarded
from tests.rpc.ours import Ours
from tests.rpc.support import DEADLINE
from tests.rpc.tap import connected, ended

from kontrol.rpc.errors import RpcError
from kontrol.rpc.security.keys import FILES, Keyring

GREETING = 64


class Attack:
    """What is done to the frame number `at` of one side, and to those after it."""

    def __init__(self, side: str, at: int, name: str) -> None:
        self.side, self.at, self.name = side, at, name
        self._held = b""
        self.done = False

    def __str__(self) -> str:
        return f"{self.name} {self.side} {self.at}"

    def pass_on(self, side: str, number: int, frame: bytes) -> bytes:
        """Return what arrives in the place of a frame."""
        if side != self.side or number < self.at:
            return frame
        if number == self.at:
            self.done = True
            return self._changed(frame)
        held, self._held = self._held, b""
        return frame + held

    def _changed(self, frame: bytes) -> bytes:
        if self.name == "swap":
            self._held = frame
        return {
            "drop": b"",
            "swap": b"",
            "repeat": frame + frame,
            "flip the last bit": frame[:-1] + bytes((frame[-1] ^ 1,)),
            "flip MORE": bytes((frame[0] ^ 1,)) + frame[1:],
            "flip COMMAND": bytes((frame[0] ^ 4,)) + frame[1:],
            "truncate": frame[: len(frame) // 2],
        }[self.name]


ALWAYS = ("repeat", "flip the last bit", "flip MORE", "flip COMMAND", "truncate")
ATTACKS = [
    Attack(side, at, name)
    for side in ("client", "server")
    for at in (0, 1, 2, 3)  # two commands of the handshake, then two parts of a message
    for name in (*ALWAYS, *(("drop", "swap") if at > 1 else ()))
]


async def relay(port: int, attack: Attack) -> asyncio.Server:
    """Listen for one client of the server at `port`."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with connected(port) as (inner, outer), asyncio.TaskGroup() as group:
                group.create_task(carry(reader, outer, attack, "client"))
                group.create_task(carry(inner, writer, attack, "server"))
        finally:
            await ended(writer)

    return await asyncio.start_server(accept, "127.0.0.1", 0)


async def carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, attack: Attack, side: str
) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        # Not as a whole: a server waits for the first bytes.
        for size in (11, GREETING - 11):
            writer.write(await reader.readexactly(size))
        number = 0
        while True:
            head = await reader.readexactly(2)
            if head[0] & 2:
                head += await reader.readexactly(7)
            frame = head + await reader.readexactly(int.from_bytes(head[1:]))
            writer.write(attack.pass_on(side, number, frame))
            if attack.name == "truncate" and attack.side == side and attack.done:
                break
            number += 1
    writer.close()


async def calls(port: int, keys: Path, attack: Attack) -> list[object]:
    """Call twice at the same time through the attacker; return the answers that came."""
    server = await relay(port, attack)
    way = server.sockets[0].getsockname()[1]
    async with server, caller(way, keys, "master") as client:

        async def call(n: int) -> object:
            try:
                return await client.call("echo", f"{attack} {n}", timeout=DEADLINE)
            except RpcError:
                return None

        answers = await asyncio.gather(call(1), call(2))
    assert attack.done, str(attack)
    return [answer for answer in answers if answer is not None]


async def test_nothing_is_accepted_that_was_not_sent_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    keys = cluster(tmp_path / "keys")
    ours = Ours()
    async with guarded(ours.methods(), keys) as port:
        answers = await asyncio.gather(*(calls(port, keys, attack) for attack in ATTACKS))
        async with caller(port, keys, "master") as client:
            assert await client.call("echo", "still there", timeout=DEADLINE) == "still there"
    asked = Counter(call.args[0] for call in ours.calls)
    sent = {f"{attack} {n}" for attack in ATTACKS for n in (1, 2)} | {"still there"}
    assert asked.keys() <= sent
    assert max(asked.values()) == 1
    for attack, came in zip(ATTACKS, answers, strict=True):
        whole = attack.name == "repeat" and attack.at == 3  # the first, before its copy
        allowed = {f"{attack} 1"} if whole else set()
        assert set(came) <= allowed, str(attack)
        if attack.side == "client":
            assert {f"{attack} 1", f"{attack} 2"} & asked.keys() <= allowed
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "refused 127.0.0.1" in told
    secrets = [Keyring.load(keys).own(kind).secret for kind in ("master", "agent", "operator")]
    texts = [(keys / name).read_text() for name in FILES if name.endswith(".secret")]
    for secret in (*secrets, *(text.strip() for text in texts)):
        assert secret not in told
