"""Fuzzes what is read from a connection: `python -m tests.fuzz.wire [--runs 2000000]`.

Bytes of real conversations, mutated, go to the ZMTP machine in both roles, with and without keys,
before and after the handshake, and what comes out of it to the codec. They are read, or refused in
the one way that there is; what is kept stays within the limits. Where there is atheris (Linux on
amd64) the mutations are guided by what they reach, else they are random. Exits with 1, and the
input, at the first that does harm. A test does so for seconds.
"""

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.rpc.zmtp.ping import ping

try:
    import atheris
except ImportError:  # no wheel for this system
    atheris = None

with atheris.instrument_imports(include=["kontrol.rpc"]) if atheris else contextlib.nullcontext():
    from kontrol.rpc.events import Beat, More, Open
    from kontrol.rpc.limits import Limits
    from kontrol.rpc.wire import Codec, Malformed, Message
    from kontrol.rpc.zmtp.curve import CurveClient, CurveServer, KeyPair
    from kontrol.rpc.zmtp.machine import CLIENT, SERVER, Machine, Ready, Role, Violation
    from kontrol.rpc.zmtp.mechanism import Mechanism, Null

LIMITS = Limits(readable=100_000, frame=50_000, command=4096)
CODEC = Codec(LIMITS)
PAIRS = KeyPair.of(b"\1" * 32), KeyPair.of(b"\2" * 32)


def repeatable(seed: int) -> Callable[[int], bytes]:
    """Return a source of bytes that are always the same: so a recorded handshake can be played."""
    chance = random.Random(seed)
    return chance.randbytes


def machine(role: Role, *, keyed: bool) -> Machine:
    metadata = {b"Socket-Type": role.socket_type}
    mechanism: Mechanism = Null(metadata)
    if keyed and role.server:
        mechanism = CurveServer(PAIRS[0], lambda _: None, metadata, repeatable(1))
    elif keyed:
        mechanism = CurveClient(PAIRS[1], PAIRS[0].public, metadata, repeatable(2))
    return Machine(role, mechanism, LIMITS, 0.0)


def conversation(*, keyed: bool) -> tuple[list[bytes], list[bytes]]:
    """Return what a client says to a server, piece by piece, and what it is answered."""
    client, server = machine(CLIENT, keyed=keyed), machine(SERVER, keyed=keyed)
    said: list[bytes] = []
    answered: list[bytes] = []
    for turn in range(8):
        for one, other, pieces in ((client, server, said), (server, client, answered)):
            pieces.append(one.take())
            other.receive(pieces[-1], 0.0)
            while (event := other.next()) is not None:
                if isinstance(event, Ready) and other is server:
                    ping(server, 1.0)
        if turn == 5:
            opens = (
                Open("ping", ("x" * 300,)),
                Open("echo", ([1, {"a": None}],)),
            )
            for opening in opens:
                client.send([b"", CODEC.encode(Message("m", None, opening))])
            client.send([b"hop", b"", CODEC.encode(Message("n", "m", More(7)))])
            server.send([b"", CODEC.encode(Message("o", "m", Beat()))])
            ping(client, 2.0)
    return said, answered


WAYS = [(role, keyed) for keyed in (False, True) for role in (SERVER, CLIENT)]


def seeds() -> Iterator[bytes]:
    """Give inputs that are read whole: their first byte is the way, the next how they are cut."""
    for number, (role, keyed) in enumerate(WAYS):
        pieces = conversation(keyed=keyed)[0 if role.server else 1]
        for cut in (0, 1, 7, 200):
            yield bytes((number, cut)) + b"".join(pieces)
        hello = b"".join(pieces[:5])  # the handshake is played, and the rest is what is mutated
        yield bytes((number | 4, 0)) + b"".join(pieces)[len(hello) :]
    yield b"\0\0" + b"\xff" + bytes(8) + b"\x7f\x01\x05\0\0\1\0\0\5hello"


PLAYED = {
    number: b"".join(conversation(keyed=keyed)[0 if role.server else 1][:5])
    for number, (role, keyed) in enumerate(WAYS)
}


def harmless(data: bytes) -> None:
    """Read `data` as a connection. Raises whatever else than a refusal comes of it."""
    if len(data) < 2:
        return
    way, cut = data[0] % 4, data[1]
    role, keyed = WAYS[way]
    one = machine(role, keyed=keyed)
    try:
        if data[0] & 4:
            feed(one, PLAYED[way])
        step = cut or len(data)
        for at in range(2, len(data), step):
            feed(one, data[at : at + step])
    except Violation as violation:
        assert str(violation), "a refusal without a reason"
        one.take()
        one.receive(PLAYED[way], 1.0)
        assert one.next() is None
        assert (one.held, one.queued) == (0, 0)


def feed(one: Machine, data: bytes) -> None:
    one.receive(data, 0.0)
    while (event := one.next()) is not None:
        if isinstance(event, list):
            assert sum(map(len, event)) <= LIMITS.readable
            try:
                CODEC.decode(event[-1])
            except Malformed as malformed:
                assert str(malformed)
    assert one.held <= LIMITS.readable + 9
    assert one.queued <= 4096 + 16 * len(data)
    one.take()


def randomly(runs: int, seed: int) -> None:
    """Mutate the seeds without guidance."""
    chance = random.Random(seed)
    known = list(seeds())
    for _ in range(runs):
        data = bytearray(chance.choice(known))
        for _ in range(chance.choice((1, 1, 2, 4, 16))):
            at = chance.randrange(len(data))
            way = chance.randrange(4)
            if way == 0:
                data[at] ^= 1 << chance.randrange(8)
            elif way == 1:
                data[at] = chance.choice((0, 1, 2, 4, 0x7F, 0x80, 0xFF))
            elif way == 2:
                data[at : at + chance.randrange(9)] = chance.randbytes(chance.randrange(9))
            else:
                del data[at:]
                data += chance.choice(known)[at:]
            data = data or bytearray(2)
        try:
            harmless(bytes(data))
        except Exception:
            print(f"the input is {bytes(data).hex()}", file=sys.stderr)
            raise


def guided(runs: int) -> int:
    """Have atheris mutate the seeds, in a process that it ends; return its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds()):
            (Path(folder) / str(number)).write_bytes(seed)
        command = [sys.executable, "-m", "tests.fuzz.wire", "--runs", str(runs), "--inputs", folder]
        return subprocess.run(command, check=False).returncode


def guide(runs: int, folder: str) -> None:
    """Fuzz with atheris, which ends the process. It keeps what reaches more in the folder."""
    options = [f"-runs={runs}", "-max_len=4096", "-rss_limit_mb=512", "-timeout=10"]
    options += [f"-artifact_prefix={tempfile.gettempdir()}/", "-print_final_stats=1", folder]
    atheris.Setup([sys.argv[0], *options], harmless)
    atheris.Fuzz()


def main() -> int:
    """Fuzz, and say how much of it was done."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.wire", description=__doc__)
    parser.add_argument("--runs", type=int, default=2_000_000, help="inputs (%(default)d)")
    parser.add_argument("--random", action="store_true", help="without atheris")
    parser.add_argument("--seed", type=int, default=random.randrange(10**9))
    parser.add_argument("--inputs", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inputs is not None:
        guide(options.runs, options.inputs)
    for data in seeds():
        harmless(data)
    if atheris is not None and not options.random:
        return guided(options.runs)
    tracemalloc.start()
    randomly(options.runs // 10, options.seed)
    before = tracemalloc.get_traced_memory()[0]
    randomly(options.runs - options.runs // 10, options.seed + 1)
    grown = tracemalloc.get_traced_memory()[0] - before
    print(f"{options.runs} inputs from seed {options.seed}; memory has grown by {grown} bytes")
    return int(grown > 1 << 20)


if __name__ == "__main__":
    sys.exit(main())
