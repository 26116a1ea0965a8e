"""What the tests of the endpoint share: a master that is none, a running endpoint, a client."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11

from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.desired import Expected
from kontrol.web.message import Limits, Request, Response
from kontrol.web.view import Document, OperatorAction
from kontrol.web.web import Web

DEADLINE = 30.0
"""Seconds that anything here may take."""

WRITER = "writer-token-0123456789"
READER = "reader-token-0123456789"
REMOTE = "198.51.100.7"
"""An address that is neither ours nor loopback's (RFC 5737)."""

SECRET = "hush-this-is-secret"
"""Stands wherever a client without a token may not look: payloads, states, unknown fields."""

ENTRY: Document = {
    "run": 7,
    "term": 5,
    "attempt": 1,
    "reason": "ensemble",
    "digest": "aa:bb",
    "fingerprint": "ff",
    "started": "2026-01-01T00:00:00Z",
    "seconds": 1.5,
    "ok": True,
    "why": "",
    "status": 0,
    "signal": None,
    "pods": 2,
    "changes": {"joined": {"count": 1, "first": ["#0 a"]}},
    "stderr": SECRET,
}


class Outage(Exception):
    """What the model raises while its store is away."""


class FakeView:
    """A model of a master. `wrong` is raised by whatever is asked of it.

    `entered` is released each time that something is asked for.
    """

    def __init__(self) -> None:
        self.wrong: Exception | None = None
        self.answer: Document = {"request": "1", "done": True, "message": "done"}
        self.asked: list[tuple[OperatorAction, str, int | str | None]] = []
        self.spec_answer: Document = {"done": True, "message": "replicas is set", "refused": ""}
        self.spec_asked: list[tuple[str, bytes | None, str, Expected | None]] = []
        self.damaged = False
        self.silent = False
        self.count = 2
        self.checks: list[Document] = [{"name": "etcd", "ok": True, "detail": "confirmed"}]
        self.digest = "aa:bb"
        self.entered = asyncio.Semaphore(0)

    async def _yield(self) -> None:
        self.entered.release()
        if self.wrong is not None:
            raise self.wrong
        if self.silent:
            await asyncio.get_running_loop().create_future()

    async def status(self) -> Document:
        await self._yield()
        return {
            "version": "1",
            "namespace": "default",
            "app": "a",
            "master": "m0",
            "time": "2026-01-01T00:00:00Z",
            "etcd": {"ok": True, "error": "", "seconds": 0.1},
            "leader": self.leader(),
            "candidates": [],
            "ensemble": {"pods": 2, "roles": {"r": 2}, "digest": "aa:bb"},
            "plan": {"what": "idle"},
            "running": None,
            "applied": None,
            "current": True,
            "runs": [ENTRY],
            "problems": [],
            "state": SECRET,
            "later": SECRET,
        }

    async def spec(self) -> Document | None:
        await self._yield()
        if self.damaged:
            return None
        by: Document = {"by": "REST from 10.0.0.9", "at": "2026-01-01T00:00:00Z"}
        return {"spec": {"replicas": 3, "secret": SECRET}, "keys": {"replicas": by}, "revision": 7}

    async def set_spec(
        self,
        key: str,
        value: bytes | None,
        by: str,
        *,
        expected: Expected | None = None,
        timeout: float = 10.0,
    ) -> Document:
        assert timeout == 10.0
        self.spec_asked.append((key, value, by, expected))
        await self._yield()
        return self.spec_answer

    async def pods(self, *, live: bool) -> list[Document]:
        self.entered.release()
        if self.wrong is not None:
            raise self.wrong
        return [
            {
                "app": "a",
                "id": f"pod{i}",
                "ip": f"10.0.0.{i}",
                "key": f"k{i}",
                "role": "r",
                "seq": i,
                "nonce": "n",
                "zone": "z",
                "payload": {"password": SECRET},
                "live": {"offset": SECRET},
                "annotations": {"note": SECRET},
                "unknown": SECRET,
            }
            for i in range(self.count)
        ]

    def leader(self) -> Document | None:
        return {"id": "m0", "address": "10.0.0.9", "term": 5, "fingerprint": "ff"}

    async def state(self) -> Document:
        await self._yield()
        return {"run": 7, "state": SECRET}

    async def runs(self, limit: int) -> list[Document]:
        await self._yield()
        return [ENTRY] * min(limit, 2)

    async def run(self, number: int) -> Document | None:
        await self._yield()
        return {**ENTRY, "state_kept": True, "state": SECRET} if number == 7 else None

    async def ask(
        self,
        kind: OperatorAction,
        by: str,
        *,
        run: int | None = None,
        pod: str = "",
        timeout: float = 10.0,
    ) -> Document:
        await self._yield()
        self.asked.append((kind, by, pod or run))
        return self.answer

    def ready(self) -> list[Document]:
        return self.checks


@dataclass(frozen=True)
class Received:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 - as json.loads
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str]:
        """The status and the name of a refusal."""
        assert set(self.json) == {"error"}
        assert set(self.json["error"]) == {"name", "message"}
        return self.status, self.json["error"]["name"]


class Client:
    """One connection; requests go one after another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.http = h11.Connection(h11.CLIENT)

    @classmethod
    async def connect(
        cls, port: int, host: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None
    ) -> "Client":
        name = "localhost" if tls else None
        return cls(*await asyncio.open_connection(host, port, ssl=tls, server_hostname=name))

    async def ask(
        self,
        method: str,
        target: str,
        *,
        token: str = "",
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Received:
        """Ask and return the answer, within the deadline."""
        said = {"Host": "127.0.0.1", **(headers or {})}
        if token:
            said["Authorization"] = f"Bearer {token}"
        if body:
            said["Content-Length"] = str(len(body))
        if self.http.our_state is h11.DONE:
            self.http.start_next_cycle()
        request = h11.Request(method=method, target=target, headers=list(said.items()))
        self.writer.write(self.http.send(request) or b"")
        if body:
            self.writer.write(self.http.send(h11.Data(data=body)) or b"")
        self.writer.write(self.http.send(h11.EndOfMessage()) or b"")
        return await self.answer()

    async def answer(self) -> Received:
        """Read one answer."""
        head: h11.Response | None = None
        body = b""
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    event = self.http.next_event()
                except h11.RemoteProtocolError as error:
                    raise ConnectionError(f"no whole answer: {error}") from None
                if event is h11.NEED_DATA:
                    self.http.receive_data(await self.reader.read(65536))
                elif isinstance(event, h11.Response):
                    head = event
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage) and head is not None:
                    named = {k.decode(): v.decode() for k, v in head.headers}
                    return Received(head.status_code, named, body)
                elif not isinstance(event, h11.InformationalResponse):
                    raise ConnectionError(f"no answer but {event}")

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def client(
    port: int, host: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Client]:
    connected = await Client.connect(port, host, tls=tls)
    try:
        yield connected
    finally:
        await connected.close()


async def get(port: int, target: str, *, token: str = "", host: str = "127.0.0.1") -> Received:
    """Ask once, over a connection of its own."""
    async with client(port, host) as one:
        return await one.ask("GET", target, token=token)


async def post(port: int, target: str, *, token: str = "", body: JSON = None) -> Received:
    async with client(port) as one:
        raw = b"" if body is None else json.dumps(body).encode()
        return await one.ask("POST", target, token=token, body=raw)


async def raw(port: int, data: bytes) -> bytes:
    """Send bytes, close our side, and return all that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with contextlib.suppress(OSError):  # it may have been closed already
            writer.write(data)
            writer.write_eof()
        async with asyncio.timeout(DEADLINE):
            try:
                return await reader.read()
            except ConnectionError:
                return b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def endpoint(token_file: Path | None, view: FakeView | None = None) -> Web:
    return Web(names=(), view=view or FakeView(), token_file=token_file, outages=(Outage,))


async def ask(
    web: Web,
    method: str,
    target: str,
    *,
    peer: str = REMOTE,
    headers: Mapping[str, str] | None = None,
    token: str = "",
    body: bytes = b"",
) -> tuple[int, bytes]:
    """Ask as a client at `peer` would, without a wire."""
    said = {"host": "127.0.0.1", **(headers or {})}
    if token:
        said["authorization"] = f"Bearer {token}"
    answer: Response = await web.app.respond(Request(method, target, peer, said, body))
    whole = answer.body if isinstance(answer.body, bytes) else b"".join(answer.body)
    return answer.status, whole


@contextlib.asynccontextmanager
async def serving(web: Web, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Run an endpoint in this loop; gives its port."""
    port = await web.bind(host, 0)
    task = asyncio.create_task(web.serve())
    try:
        yield port
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        web.listener.close()


QUICK = Limits(request=0.2, idle=0.2, handling=0.2, send=0.5, linger=0.1)
"""Limits for tests of slow clients: what takes longer than this is over them."""
