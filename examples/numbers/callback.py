#!/usr/bin/env python3
"""Number the pods from 0, and restart them one by one after `kontrol set restart=TOKEN`.

A run acts on what the run before has decided and committed, and then decides for the next one. So
whatever crashes in between, no pod loses its number, and none is restarted twice.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path


def started(payload: object) -> bool:
    """Tell whether automaton says so."""
    return isinstance(payload, dict) and payload.get("state") == "started"


given = json.load(sys.stdin)
pods = {pod["id"]: pod["payload"] for pod in given["pods"]}
state = given.get("state") or {"numbers": {}, "restart": None, "todo": []}
numbers, todo = state["numbers"], state["todo"]

# Act. `restart` says done once a pod is back; until then, and while any other is not, all wait.
publish = ["kontrol", "publish", "numbers", json.dumps(numbers)]
subprocess.run(publish, check=True)
waits = [pod for pod, payload in pods.items() if not started(payload)]
taken = {number for pod, number in numbers.items() if pod in pods}
waits += [f"number {n}" for n in range(len(numbers)) if n not in taken]
due = [pod for pod in todo if pod in pods]
if due and not waits:
    invoke = ["kontrol", "invoke", "--timeout", "30", due[0], "--", "restart"]
    token = str(state["restart"])
    said = subprocess.run([*invoke, token], stdout=subprocess.PIPE, text=True, check=False).stdout
    todo = [pod for pod in todo if pod != due[0] or not said.endswith("| done\n")]
    waits = due[:1]

# Decide. A pod keeps its number; those that are new get the lowest free ones, in their order.
numbers = {pod: number for pod, number in numbers.items() if pod in pods}
free = itertools.filterfalse(set(numbers.values()).__contains__, itertools.count())
numbers |= {pod: next(free) for pod in pods if pod not in numbers}
if (restart := given["spec"].get("restart")) != state["restart"]:
    # First the one that may be under way for the last token: it is waited for.
    todo = sorted(numbers, key=lambda pod: (pod not in due[:1], numbers[pod])) if restart else []
decided = {"numbers": numbers, "restart": restart, "todo": todo}
print(json.dumps(decided))
left = ", ".join(pod for pod in todo if pod in pods) or "none"
print(f"numbers: {numbers}, to restart: {left}", file=sys.stderr)
if decided != state:
    Path(os.environ["AGAIN_FILE"]).write_text("0.1")
elif due:
    Path(os.environ["AGAIN_FILE"]).write_text("1")
    Path(os.environ["NOTE_FILE"]).write_text(f"{len(due)} left to restart; waits for {waits[0]}")
