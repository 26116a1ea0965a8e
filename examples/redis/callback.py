#!/usr/bin/env python3
"""Keep one Redis primary: choose it, remember it as the state, publish it for pods to follow."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def wait(why: str) -> None:
    """Keep the state, say why, and look again in a second; a change comes earlier."""
    Path(os.environ["NOTE_FILE"]).write_text(why, encoding="utf-8")
    Path(os.environ["AGAIN_FILE"]).write_text("1", encoding="utf-8")
    sys.exit()


def offset(pod: dict[str, Any]) -> int | None:
    """Return how far a Redis has come: finally, if its link is down, else as last reported."""
    final = pod["payload"].get("offset")
    return (pod.get("live") or {}).get("offset") if final is None else final


given = json.load(sys.stdin)
primary = given.get("state") or {"id": None, "ip": None, "since": None}
pods = {pod["id"]: pod for pod in given["pods"] if pod["role"] == "redis" and pod["payload"]}
serving = [pod for pod in pods.values() if pod["payload"]["state"] == "serve"]
last: dict[str, Any] = pods.get(primary["id"], {})
if last in serving and last["payload"]["since"] == primary["since"]:
    primary = primary | {"silent": last["payload"].get("silent") or primary["silent"]}
else:  # it was lost or left, is stopping, or has restarted
    if len(serving) < 2:
        wait("a primary takes no writes without a replica: two servers are needed")
    if any(offset(pod) is None or "synced" not in pod["payload"] for pod in serving):
        wait("a Redis does not say how far it has come")
    # Those in sync with the last primary have all that was acknowledged; at first there is none.
    synced = [pod for pod in serving if pod["payload"]["synced"] == primary["ip"]] or serving
    stopping = bool(last) and last["payload"]["state"] == "stop"
    if last and not stopping and any(pod["payload"]["offset"] is None for pod in synced):
        wait("the primary has ended, and its replicas still receive what it sent")
    new = max(synced, key=lambda pod: (offset(pod), pod["id"] == primary["id"]))
    primary = {"id": new["id"], "ip": new["ip"], "replicas": len(serving) - 1}
    primary |= {name: new["payload"].get(name) for name in ("since", "silent")}
    primary["from"] = last["ip"] if stopping else None
if primary != given.get("state"):
    subprocess.run(["kontrol", "publish", "primary", json.dumps(primary)], check=True)
print(json.dumps(primary))
