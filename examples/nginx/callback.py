#!/usr/bin/env python3
"""Publish which backends serve, for balancers to follow, and which of the others may end."""

import json
import subprocess
import sys
from typing import Any

pods = json.load(sys.stdin)["pods"]


def facts(role: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the address of each pod of a role, and the facts in its payload, if any yet."""
    found = ((pod["ip"], pod["payload"]) for pod in pods if pod["role"] == role)
    return [(ip, payload if isinstance(payload, dict) else {}) for ip, payload in found]


serve = [ip for ip, backend in facts("backend") if backend.get("state") == "started"]
stopping = [ip for ip, backend in facts("backend") if backend.get("state") == "stopping"]
# A balancer reports the list that it uses. Before it does, it may use any.
used = [balancer.get("serve", stopping) for _, balancer in facts("balancer")]
lists = {"serve": serve, "end": [ip for ip in stopping if not any(ip in each for each in used)]}
publish = ["kontrol", "publish", "backends", json.dumps(lists)]
subprocess.run(publish, check=True)
