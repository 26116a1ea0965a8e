"""Random requests on REST: bytes that are no HTTP, HTTP that is odd, and requests that are mutated.

    python -m tests.web.fuzz 100000 [SEED]

An endpoint in this process, with a model of a master behind it, is sent so many requests over so
many connections. It must answer each that is one, crash at none, hang at none, show no secret and
change nothing for who has no token, and end with the memory that it had.
"""

import asyncio
import contextlib
import gc
import json
import random
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.web.support import DEADLINE, READER, SECRET, WRITER, FakeView, Outage, get, serving

from kontrol.web.limits import Limits
from kontrol.web.routes import ROUTES
from kontrol.web.web import Web

AT_ONCE = 24
LIMITS = Limits(request=0.5, idle=0.5, linger=0.05, rate=1e9, burst=1 << 40)
"""Those of the product, but patience: a request that never ends would take the test's time."""

_STATUS = re.compile(rb"^HTTP/1\.1 (\d{3}) ", re.MULTILINE)
_METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "get"]
_HOSTS = ["127.0.0.1", "localhost:8001", "[::1]", "evil.example", "", "a b", "[", "\xff", "@:"]
_TOKENS = [f"Bearer {WRITER}", f"Bearer {READER}", "Bearer x", "Basic x", "", "Bearer \xff\x80"]
_BODIES = [
    b"",
    b"{}",
    b'{"run": 7}',
    b'{"run": -1}',
    b"[" * 3000,
    b"\xff\x00",
    b"1e999",
    b"x" * 5000,
]
_HEADERS = [
    *("Connection: close", "Connection: keep-alive", "Expect: 100-continue", "Upgrade: h2c"),
    *("Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "Content-Length: 3"),
    *("Content-Length: 99999999999999999999999", "Content-Length: -1", "X-Forwarded-For: ::1"),
    *("Content-Type: application/json", "Range: bytes=0-1", "X: " + "y" * 9000, "bad", ": x"),
    *("Host: twice", "Cookie: " + "a=b;" * 500, "\x00: \x00", "X:\ty ", " folded: x"),
]
_TARGETS = [
    *(route.path.format(key="k1", run="7") for route in ROUTES),
    *("/", "*", "//", "/v1", "/v1/", "/v1/pods/%00", "/v1/pods/../../etc/passwd", "/v1/runs/x"),
    *("/v1/runs?limit=5", "/v1/runs?limit=" + "9" * 500, "/v1/runs?limit=%zz&a=b", "http://[::1"),
    *("http://127.0.0.1/healthz", "http://evil.example/v1/pods", "/" + "a" * 3000, "/\xff", ""),
]


@dataclass
class Tally:
    """What came back: answers by status, and connections that ended without one."""

    sent: int = 0
    answers: dict[int, int] = field(default_factory=dict)
    silent: int = 0

    def take(self, answer: bytes) -> None:
        """Count the answers in what a connection got."""
        found = _STATUS.findall(answer)
        self.silent += not found
        for code in found:
            self.answers[int(code)] = self.answers.get(int(code), 0) + 1


def structured(rng: random.Random, token: str | None = None) -> bytes:
    """Return a request that is nearly one."""
    body = rng.choice(_BODIES)
    lines = [f"{rng.choice(_METHODS)} {rng.choice(_TARGETS)} HTTP/1.{rng.choice('1111110239x')}"]
    lines.append(f"Host: {rng.choice(_HOSTS) if rng.random() < 0.3 else '127.0.0.1'}")
    if token is None and rng.random() < 0.5:
        token = rng.choice(_TOKENS)
    if token:
        lines.append(f"Authorization: {token}")
    if body and rng.random() < 0.9:
        lines.append(f"Content-Length: {len(body)}")
    lines += rng.sample(_HEADERS, rng.choice([0, 0, 0, 0, 1, 2]))
    if rng.random() < 0.1:
        rng.shuffle(lines)
    ends = "\n" if rng.random() < 0.05 else "\r\n"
    return (ends.join(lines) + ends * 2).encode("latin-1") + body


def mutated(rng: random.Random, whole: bytes) -> bytes:
    """Return bytes with a few of them flipped, cut, doubled, or other ones put in."""
    data = bytearray(whole)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0 if data:
                data[at % len(data)] = rng.randrange(256)
            case 1:
                del data[at : at + rng.randrange(20)]
            case 2:
                data[at:at] = data[at : at + rng.randrange(200)]
            case _:
                data[at:at] = rng.randbytes(rng.randrange(20))
    return bytes(data)


def requests(rng: random.Random) -> list[bytes]:
    """Return what one connection sends: one request, or some in a row."""
    made = []
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        match rng.randrange(10):
            case 0:
                made.append(rng.randbytes(rng.randrange(1, 300)))
            case 1 | 2 | 3:
                made.append(mutated(rng, structured(rng)))
            case _:
                made.append(structured(rng))
    return made


async def converse(host: str, port: int, parts: list[bytes], rng: random.Random) -> bytes:
    """Send the parts, close our side at the end (or break off), and return what comes back."""
    mine = f"127.{rng.randrange(1, 255)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"
    reader, writer = await asyncio.open_connection(host, port, local_addr=(mine, 0))
    try:
        with contextlib.suppress(OSError):
            for part in parts:
                writer.write(part)
                await writer.drain()
            if rng.random() < 0.02:
                writer.transport.abort()
                return b""
            writer.write_eof()
        async with asyncio.timeout(DEADLINE):
            answer = b""
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65536):
                    answer += data
            return answer
    finally:
        writer.transport.abort()


async def worker(
    port: int, rng: random.Random, tally: Tally, total: int, *, host: str = "127.0.0.1"
) -> None:
    """Converse until `total` requests were sent by all workers together, from many addresses."""
    while tally.sent < total:
        parts = requests(rng)
        tally.sent += len(parts)
        tokens = any(token.encode() in part for part in parts for token in (READER, WRITER))
        answer = await converse(host, port, parts, rng)
        assert b"Traceback" not in answer, parts
        assert tokens or SECRET.encode() not in answer, parts
        tally.take(answer)


async def run(total: int, seed: int = 0) -> Tally:
    """Send `total` random requests; raises `AssertionError` if anything is amiss."""
    tally = Tally()
    view = FakeView()
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "token"
        tokens.write_text(f"{WRITER}\n{READER}\n", "utf-8")
        web = Web(
            names={"localhost"},
            view=view,
            token_file=tokens,
            limits=LIMITS,
            outages=(Outage,),
        )
        async with serving(web) as port:
            async with asyncio.TaskGroup() as group:
                for i in range(AT_ONCE):
                    group.create_task(worker(port, random.Random(f"{seed}.{i}"), tally, total))
            assert (await get(port, "/healthz")).status == 200
        assert web.app.failures == 0, "an internal error: see the log"
        assert web.listener.failed == 0, "a connection failed: see the log"
        assert web.listener.connections == 0
        assert all(by.startswith("REST from 127.") for _, by, _ in view.asked)
    return tally


def resident() -> int:
    """Resident memory in KiB."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * 4


def main() -> None:
    """Run the long version, in ten parts, with the memory after each."""
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    whole = Tally()
    for part in range(10):
        tally = asyncio.run(run(total // 10, seed * 1000 + part))
        whole.sent += tally.sent
        whole.silent += tally.silent
        for code, count in tally.answers.items():
            whole.answers[code] = whole.answers.get(code, 0) + count
        gc.collect()
        print(f"{whole.sent} requests, {resident()} KiB resident", flush=True)
    print(json.dumps({"answers": dict(sorted(whole.answers.items())), "silent": whole.silent}))


if __name__ == "__main__":
    main()
