#!/usr/bin/env python3
"""Keep one Redis primary, and have all other pods of the role `redis` replicate it."""

import json
import subprocess
import sys
from collections.abc import Iterable


def invoke(pods: Iterable[str], *command: str) -> tuple[dict[str, str], bool]:
    """Run a command on some pods; return what each wrote, and whether it ran well on all."""
    words = ["kontrol", "invoke", "--json", *pods, "--", *command]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    wrote = dict.fromkeys(pods, "")
    for line in done.stdout.splitlines():
        event = json.loads(line)
        if "stdout" in event:
            wrote[event["pod"]] += event["stdout"]
    return wrote, done.returncode == 0


def offset(info: str) -> int:
    """Return how far a server has come in its replication, -1 if it did not tell."""
    for line in info.splitlines():
        if line.startswith("master_repl_offset:"):
            return int(line.partition(":")[2])
    return -1


given = json.load(sys.stdin)
pods = {pod["id"]: pod for pod in given["pods"] if pod["role"] == "redis"}
if not pods:
    sys.exit()  # nothing printed: the state stays as it is
primary = (given.get("state") or {}).get("primary")
if primary not in pods:  # at first, and when it left or was lost: the one that knows most
    told, _ = invoke(pods, "redis-cli", "info", "replication")
    primary = max(pods, key=lambda pod: offset(told[pod]))  # of equals the first in order
_, good = invoke([primary], "redis-cli", "replicaof", "no", "one")
others = [pod for pod in pods if pod != primary]
if others:
    _, well = invoke(others, "redis-cli", "replicaof", pods[primary]["ip"], "6379")
    good = good and well
if not good:
    sys.exit("not every pod has taken it")  # the run fails, and is tried again
print(json.dumps({"primary": primary}))
