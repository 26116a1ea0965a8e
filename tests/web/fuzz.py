"""Random requests on REST: bytes that are no HTTP, HTTP that is odd, and requests that are mutated.

    python -m tests.web.fuzz 100000 [SEED]

An endpoint with a model of a master behind it is sent so many requests over so many connections. It
must answer each that is one, crash at none, hang at none, show no secret to who has no token, and
end with the memory that it had. The long version serves in a process of its own, to tell its
memory from that of the clients.
"""

import asyncio
import contextlib
import logging
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.web.support import DEADLINE, READER, SECRET, WRITER, FakeView, Outage, get, serving

from kontrol.web.message import Limits
from kontrol.web.routes import ROUTES
from kontrol.web.web import Web

AT_ONCE = 24
LIMITS = Limits(request=0.5, idle=0.5, linger=0.05, rate=1e9, burst=1 << 40)
"""Those of the product, but the timeouts: a request that never ends would take the test's time."""

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
    """What was sent, and the answers by status."""

    sent: int = 0
    answers: Counter[int] = field(default_factory=Counter)


def structured(rng: random.Random) -> bytes:
    """Return a request that is nearly one."""
    method, target, body = rng.choice(_METHODS), rng.choice(_TARGETS), b""
    if rng.random() < 0.5:
        route = rng.choice(ROUTES)
        method, target = route.method, route.path.format(key="k1", run="7")
    if rng.random() < (0.8 if method == "POST" else 0.2):
        body = rng.choice(_BODIES)
    version = "1.1" if rng.random() < 0.95 else f"{rng.randrange(4)}.{rng.choice('0129x')}"
    lines = [f"{method} {target} HTTP/{version}"]
    lines.append(f"Host: {rng.choice(_HOSTS) if rng.random() < 0.2 else '127.0.0.1'}")
    if rng.random() < 0.6:
        lines.append(f"Authorization: {rng.choice(_TOKENS)}")
    if body and rng.random() < 0.9:
        lines.append(f"Content-Length: {len(body)}")
    lines += rng.sample(_HEADERS, rng.choice([0, 0, 0, 0, 0, 0, 1, 2]))
    if rng.random() < 0.05:
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
        tally.answers.update(map(int, _STATUS.findall(answer)))


async def flood(port: int, total: int, seed: str, *, host: str = "127.0.0.1") -> Tally:
    """Send `total` random requests; raises `AssertionError` if an answer is amiss."""
    tally = Tally()
    async with asyncio.TaskGroup() as group:
        for i in range(AT_ONCE):
            rng = random.Random(f"{seed}.{i}")
            group.create_task(worker(port, rng, tally, total, host=host))
    answer = await get(port, "/metrics", host=host)
    assert b"\nkontrol_http_errors_total 0\n" in answer.body, "an internal error: see the log"
    return tally


@contextlib.asynccontextmanager
async def endpoint() -> AsyncIterator[int]:
    """Serve in this process; gives the port."""
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "token"
        tokens.write_text(f"{WRITER}\n{READER}\n", "utf-8")
        view = FakeView()
        web = Web(
            names={"localhost"},
            view=view,
            token_file=tokens,
            limits=LIMITS,
            outages=(Outage,),
        )
        async with serving(web) as port:
            yield port
        assert web.listener.connections == 0
        assert all(by.startswith("REST from 127.") for _, by, _ in view.asked)


def resident(pid: int | str = "self") -> int:
    """Resident memory in KiB."""
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * 4


async def serve() -> None:
    """Serve until killed; tells the port first."""
    logging.disable()
    async with endpoint() as port:
        print(port, flush=True)
        await asyncio.get_running_loop().create_future()


async def main(total: int, seed: str) -> None:
    """Run the long version, in ten parts, with the server's memory after each."""
    words = ("-m", "tests.web.fuzz", "serve")
    server = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        port = int(await server.stdout.readline())
        answers: Counter[int] = Counter()
        sent = 0
        for part in range(10):
            tally = await flood(port, total // 10, f"{seed}.{part}")
            answers.update(tally.answers)
            sent += tally.sent
            print(f"{sent} requests, {resident(server.pid)} KiB resident", flush=True)
        print(f"answers by status: {dict(sorted(answers.items()))}")
    finally:
        server.kill()
        await server.wait()


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    else:
        asyncio.run(main(int((sys.argv[1:] or ["100000"])[0]), (sys.argv[2:] or ["0"])[0]))
