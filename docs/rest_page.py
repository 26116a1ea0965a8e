"""The REST page's body, from the table of routes. No Sphinx in here: tests read it too."""

import json
from collections.abc import Iterable

from kontrol.web.access import Access
from kontrol.web.routes import ROUTES, Route

_WHO = {
    Access.ANYONE: "Anyone.",
    Access.LOCAL: "Holders of a token; without one, clients on loopback.",
    Access.READER: "Holders of a token.",
    Access.WRITER: "Holders of the token that may change things.",
}

_DIGEST = "45:6c:94:0c:5a:05:28:6c:8e:c6:fa:7c:b7:05:9f:3d"
_FINGERPRINT = "6a4c1f0e1f6b0c5d8d3fdd0f6d2c5ef4a4bb6a1f7a3c2f0d1e9b8a7c6d5e4f30"
_LEADER = {
    "id": "kontrol-0",
    "address": "10.0.0.1",
    "port": 8000,
    "fingerprint": _FINGERPRINT,
    "term": 42,
}
_POD = {
    "app": "redis",
    "id": "redis-0",
    "ip": "10.0.0.5",
    "key": "beFf7",
    "role": "cache",
    "seq": 0,
    "nonce": "187a6d0b1f3c9a4e5d6c7b8a",
    "version": "1.0.0",
    "payload": {"state": "READY"},
}
_ENTRY = {
    "run": 7,
    "term": 42,
    "attempt": 1,
    "reason": "ensemble",
    "follows": 0,
    "digest": _DIGEST,
    "fingerprint": _FINGERPRINT,
    "started": "2026-01-05T03:12:44.108+00:00",
    "seconds": 0.214,
    "ok": True,
    "why": "exit status 0",
    "status": 0,
    "signal": None,
    "pods": 3,
    "changes": {
        "joined": {"count": 1, "first": ["#2 redis-2"]},
        "left": {"count": 0, "first": []},
        "lost": {"count": 0, "first": []},
        "changed": {"count": 0, "first": []},
    },
    "stderr": "",
}
_SET_BY = {"by": "REST from 10.0.0.7", "at": "2026-01-05T03:12:40.511+00:00"}
_CHANGED = {
    "key": "replicas",
    "done": True,
    "changed": True,
    "message": "replicas is set",
    "refused": "",
}
_ANSWER = {
    "request": "694d77aa9e38260f",
    "done": True,
    "message": "run 8 has started",
    "refused": False,
    "run": 8,
}

SAMPLES: dict[str, object] = {
    "GET /healthz": {"ok": True},
    "GET /readyz": {
        "ready": True,
        "checks": [{"name": "etcd", "ok": True, "detail": "confirmed 0.4 s ago"}],
    },
    "GET /metrics": 'kontrol_agent_reporting{tier="kontrol:8000"} 1\n...',
    "GET /v1/status": {
        "version": "1.0.0",
        "namespace": "default",
        "app": "redis",
        "master": "kontrol-1",
        "time": "2026-01-05T03:13:01.002+00:00",
        "etcd": {"ok": True, "error": "", "seconds": 0.4, "alarms": []},
        "ttl": 25.0,
        "leader": {**_LEADER, "last_seen_seconds": 1.0},
        "candidates": [_LEADER],
        "ensemble": {"pods": 3, "roles": {"cache": 3}, "digest": _DIGEST},
        "plan": {
            "what": "wait",
            "reason": "ensemble",
            "hold": "damper",
            "until": "2026-01-05T03:13:04.102+00:00",
            "seconds": 3.1,
            "lost": [],
            "missing": 0,
            "of": 3,
        },
        "running": None,
        "changes_waiting_seconds": 6.9,
        "usual_run_seconds": 0.2,
        "applied": {
            "run": 7,
            "digest": _DIGEST,
            "fingerprint": _FINGERPRINT,
            "pods": 3,
            "revision": 1204,
        },
        "current": False,
        "runs": ["..."],
        "problems": [
            {"kind": "no-pods", "what": "no pod reports", "fix": "see an agent's log, ..."}
        ],
    },
    "GET /v1/pods": {"digest": _DIGEST, "pods": [_POD]},
    "GET /v1/pods/{key}": _POD,
    "GET /v1/state": {"run": 7, "state": {"primary": "redis-0"}, "acknowledged": 7},
    "GET /v1/spec": {
        "spec": {"primary": "redis-1", "replicas": 3},
        "keys": {"primary": _SET_BY, "replicas": _SET_BY},
        "revision": 1187,
    },
    "GET /v1/spec/{key}": {"key": "replicas", "value": 3, **_SET_BY, "revision": 1187},
    "GET /v1/leader": {"leader": _LEADER},
    "GET /v1/runs": {"runs": [_ENTRY]},
    "GET /v1/runs/{run}": {**_ENTRY, "state_kept": True},
    "POST /v1/runs": _ANSWER,
    "POST /v1/release": {**_ANSWER, "message": "the brake is released", "run": None},
    "POST /v1/rollback": {
        **_ANSWER,
        "message": "run 8 restored the state of run 7",
    },
    "POST /v1/forget": {
        **_ANSWER,
        "message": "pod redis-7 (key 2Ky07, #4, nonce none) is forgotten: the next report of it "
        "with this key is accepted, under the same number; it is run 8 of the ledger",
    },
    "POST /v1/set": _CHANGED,
    "POST /v1/unset": {**_CHANGED, "message": "replicas is unset"},
}
"""An answer to each route; a test compares their fields with those of a running master."""


def render(routes: Iterable[Route] = ROUTES) -> str:
    """Return reStructuredText: a section for each route."""
    lines: list[str] = []
    for route in routes:
        name = f"{route.method} {route.path}"
        lines += [f"``{name}``", "-" * (len(name) + 4), ""]
        lines += [_code(route.doc), "", f":Who: {_WHO[route.least]}"]
        if route.redacted:
            lines.append(f":Without a token: Less {_code(route.redacted)}.")
        lines += [f":``{key}``: {_code(text)}" for key, text in route.query.items()]
        if route.body:
            lines.append(f":Body: ``{route.body}``")
        lines += ["", *_block("console", f"$ {_curl(route)}"), *_block("text", _sample(name))]
        lines += [f":{status}: {_code(text)}" for status, text in sorted(route.statuses.items())]
        lines.append("")
    return "\n".join(lines)


def _curl(route: Route) -> str:
    words = ["curl"]
    if route.method != "GET":
        words.append(f"-X {route.method}")
    if route.least > Access.ANYONE:
        words.append('-H "Authorization: Bearer $(head -1 token)"')
    if route.body:
        words.append(f"-d '{route.body}'")
    key = "replicas" if route.path.startswith("/v1/spec") else "beFf7"
    path = route.path.format(key=key, run=7)
    query = "?limit=5" if route.query else ""
    return " ".join([*words, f"http://10.0.0.1:8001{path}{query}"])


def _sample(name: str) -> str:
    sample = SAMPLES[name]
    return sample if isinstance(sample, str) else json.dumps(sample, indent=1, sort_keys=True)


def _block(language: str, text: str) -> list[str]:
    return [f".. code-block:: {language}", "", *(f"   {row}" for row in text.splitlines()), ""]


def _code(text: str) -> str:
    # The table marks code as Markdown does, with one backtick; here it takes two.
    return text.replace("`", "``")
