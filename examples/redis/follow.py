#!/usr/bin/env python3
"""Have this pod's Redis be what the published document says: a replica, or the primary."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def redis(*words: str, host: str = "") -> str:
    """Return what the Redis of this pod, or of another host, answers."""
    where = ["-h", host] if host else ["-s", "redis.sock"]
    command = ["redis-cli", "-e", *where, *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=2).stdout


def number(name: str, host: str = "") -> int:
    """Return a number of what a Redis says of its replication."""
    return int(redis("info", "replication", host=host).split(f"{name}:")[1].split()[0])


def until(condition: Callable[[], bool], seconds: float = 3) -> None:
    """Wait until that is so, for some seconds at most."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


def is_primary() -> bool:
    """Tell whether the chosen one is the primary by now."""
    return redis("role", host=primary["ip"]).startswith("master")


me = os.environ["KONTROL_IP"]
primary = json.loads(Path("published.json").read_text("utf-8"))["documents"].get("primary")
if primary is None:
    sys.exit()
if primary["ip"] == me:
    if primary["since"] != json.loads(Path("state.json").read_text("utf-8"))["since"]:
        sys.exit()  # a process of this pod that has ended
    if primary["from"]:
        until(is_primary)  # which the one before sees to
    elif "master_link_status:up" in redis("info", "replication"):
        # The one before may still take writes, if its agent alone hangs. It sends them here until
        # no other replica can confirm them.
        until(lambda: number("connected_slaves") >= primary["replicas"], 1)
    redis("replicaof", "no", "one")
    silent = Path("silent")
    if silent.exists() and primary["silent"] == silent.read_text("utf-8").strip():
        redis("config", "set", "min-replicas-to-write", "1")
        silent.unlink()
else:
    if primary["from"] == me and redis("role").startswith("master"):
        # Hand over: take no more writes, and wait until the next one has all of them.
        redis("client", "pause", "5000", "write")
        end = number("master_repl_offset")
        until(lambda: number("master_repl_offset", primary["ip"]) >= end)
        redis("replicaof", "no", "one", host=primary["ip"])
    redis("replicaof", primary["ip"], "6379")
