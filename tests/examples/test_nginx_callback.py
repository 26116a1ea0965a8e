"""What the balancer's callback publishes: a backend may end once no balancer uses it."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from tests.examples.support import Callback

CALLBACK = Callback("nginx/callback.py")


def backend(host: int, state: str | None) -> dict[str, Any]:
    payload = "" if state is None else {"state": state, "since": "2026-01-01T00:00:00Z"}
    return {"role": "backend", "ip": f"10.0.0.{host}", "payload": payload}


def balancer(*hosts: int) -> dict[str, Any]:
    serve = [f"10.0.0.{host}" for host in hosts]
    return {"role": "balancer", "ip": "10.0.1.1", "payload": {"serve": serve}}


STARTED, STOPPING = backend(1, "started"), backend(2, "stopping")
UNKNOWN = {"role": "balancer", "ip": "10.0.1.2", "payload": ""}
OTHERS = [{"role": role, "ip": "10.0.2.1", "payload": [1]} for role in ("backend", "worker")]


@pytest.mark.parametrize(
    ("pods", "serve", "end"),
    [
        ([], [], []),
        ([backend(3, "started"), STARTED], [3, 1], []),
        ([backend(3, "starting"), backend(4, None), backend(5, "stopped"), STARTED], [1], []),
        ([STARTED, STOPPING, *OTHERS], [1], [2]),
        ([STARTED, STOPPING, balancer(1, 2)], [1], []),
        ([STARTED, STOPPING, balancer(1)], [1], [2]),
        ([STARTED, STOPPING, balancer(1), balancer(2)], [1], []),
        ([STARTED, STOPPING, balancer(1), UNKNOWN], [1], []),
    ],
)
def test_a_backend_may_end_once_no_balancer_uses_it(
    pods: list[dict[str, Any]], serve: list[int], end: list[int]
) -> None:
    published = []

    def act(words: Sequence[str]) -> str:
        published.append(words)
        return ""

    assert CALLBACK.run({"pods": pods}, act, {}) == ""
    [(*command, text)] = published
    assert command == ["kontrol", "publish", "backends"]
    lists = {"serve": serve, "end": end}
    assert json.loads(text) == {
        name: [f"10.0.0.{host}" for host in hosts] for name, hosts in lists.items()
    }
