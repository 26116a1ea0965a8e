"""A master that answers REST as it is told, for tests of what asks it."""

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NOW = "2026-01-05T03:12:44Z"
DIGEST = "1f:00:ad:3c:77:80:4e:91:b2:0d:5c:66:e8:19:fa:2b"


def entry(run: int, **more: object) -> dict[str, Any]:
    """Return an entry of the ledger."""
    none: dict[str, object] = {"count": 0, "first": []}
    return {
        "run": run,
        "term": 318,
        "attempt": 1,
        "reason": "ensemble",
        "digest": DIGEST,
        "fingerprint": "9b" * 32,
        "started": "2026-01-05T03:08:12Z",
        "seconds": 1.234,
        "ok": True,
        "why": "exit status 0",
        "status": 0,
        "signal": None,
        "pods": 3,
        "changes": {
            "joined": {"count": 2, "first": ["#7 redis-7", "#8 redis-8"]},
            "left": none,
            "lost": none,
            "changed": none,
        },
        "stderr": "",
        **more,
    }


FAILED = entry(
    41,
    ok=False,
    why="exit status 3",
    status=3,
    attempt=2,
    reason="unacknowledged",
    stderr="connecting\nno route to 10.0.0.9\n",
)


def status(**more: object) -> dict[str, Any]:
    """Return the situation, all well unless told otherwise."""
    return {
        "version": "1.0.0",
        "namespace": "default",
        "app": "redis",
        "master": "redis-m-1",
        "time": NOW,
        "etcd": {"ok": True, "seconds": 0.41},
        "leader": {
            "id": "redis-m-0",
            "address": "10.0.0.5:8000",
            "term": 318,
            "fingerprint": "9b" * 32,
        },
        "candidates": [
            {"id": "redis-m-0", "address": "10.0.0.5:8000", "fingerprint": "9b" * 32},
            {"id": "redis-m-1", "address": "10.0.0.6:8000", "fingerprint": "9b" * 32},
        ],
        "ensemble": {"pods": 3, "roles": {"cache": 2, "proxy": 1}, "digest": DIGEST},
        "plan": {
            "what": "idle",
            "reason": None,
            "hold": None,
            "until": None,
            "seconds": None,
            "lost": [],
            "of": 3,
        },
        "running": None,
        "applied": {"run": 42, "digest": DIGEST, "pods": 3, "fingerprint": "9b" * 32},
        "current": True,
        "runs": [entry(42), FAILED],
        "problems": [],
        **more,
    }


def held(hold: str, **more: object) -> dict[str, Any]:
    """Return the situation while something holds a run."""
    plan = {
        "what": "wait",
        "reason": "ensemble",
        "hold": hold,
        "until": "2026-01-05T03:13:21Z",
        "seconds": 37.2,
        "lost": ["#1 redis-1", "#2 redis-2"],
        "of": 3,
    }
    return status(plan=plan, current=False, **more)


def pod(seq: int, **more: object) -> dict[str, Any]:
    """Return a pod."""
    return {
        "seq": seq,
        "id": f"redis-{seq}",
        "app": "redis",
        "role": "cache",
        "ip": f"10.0.1.{seq}",
        "key": f"2Ky0{seq}",
        "nonce": "n",
        "node": "node-a",
        "payload": {"state": "READY"},
        **more,
    }


PODS = [pod(0, role="proxy", payload=""), pod(7), pod(8)]


@dataclass
class Reply:
    """What to answer: a document, or bytes of any other kind."""

    document: object = None
    status: int = 200
    raw: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Asked:
    """What was asked."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Master:
    """Answers from `replies`, by method and path. `asked` lists what came; `came` tells of it."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.came = threading.Event()
        self.replies: dict[str, Reply] = {
            "GET /v1/status": Reply(status()),
            "GET /v1/pods": Reply({"pods": PODS, "digest": DIGEST}),
            "GET /v1/pods/2Ky07": Reply(PODS[1]),
            "GET /v1/state": Reply({"run": 42, "state": {"primary": "redis-7"}}),
            "GET /v1/runs": Reply({"runs": [entry(42), FAILED]}),
            "GET /v1/runs/42": Reply(entry(42, state_kept=True)),
            "GET /v1/runs/41": Reply({**FAILED, "state_kept": False}),
            "POST /v1/runs": Reply({"request": "1", "done": True, "message": "run 43 starts"}),
            "POST /v1/release": Reply({"request": "2", "done": True, "message": "released"}),
            "POST /v1/rollback": Reply({"request": "3", "done": True, "message": "put back"}),
            "POST /v1/forget": Reply({"request": "4", "done": True, "message": "forgotten"}),
        }
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        """Where to ask."""
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def serving(self) -> Iterator["Master"]:
        """Serve, in a thread."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join(10)
            self._server.server_close()

    def answer(self, asked: Asked) -> Reply:
        """Return the reply to what was asked."""
        self.asked.append(asked)
        self.came.set()
        known = self.replies.get(f"{asked.method} {asked.path.partition('?')[0]}")
        if known:
            return known
        name = "NoSuchRun" if "runs/" in asked.path else "NoSuchPod"
        error = {"name": name, "message": f"there is no {asked.path}"}
        return Reply({"error": error}, status=404)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        master = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(size)
                reply = master.answer(
                    Asked(self.command, self.path, dict(self.headers.items()), body)
                )
                raw = json.dumps(reply.document).encode() if reply.raw is None else reply.raw
                self.send_response(reply.status)
                headers = {"Content-Type": "application/json", "Content-Length": str(len(raw))}
                for name, value in {**headers, **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = _serve  # noqa: N815  # the names that the library calls

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name
                pass

        return Handler


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve connections one by one by hand; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stopped = threading.Event()

        def run() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if stopped.is_set():
                        return
                    connection.settimeout(10)
                    try:
                        serve(connection)
                    except OSError:
                        continue

        thread = threading.Thread(target=run)
        thread.start()
        port: int = listener.getsockname()[1]
        try:
            yield port
        finally:
            stopped.set()
            socket.create_connection(("127.0.0.1", port), 10).close()
            thread.join(20)
