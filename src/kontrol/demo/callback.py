"""The demo's callback: prints the ensemble and what changed, and counts its runs.

    python -m kontrol.demo.callback

Any program can be a callback. This one reads the JSON document on its standard input, writes its
messages to standard error, which goes to the log, and prints its new state.
"""

import json
import sys
from typing import TextIO


def main(stdin: TextIO, stdout: TextIO, stderr: TextIO) -> None:
    """Run once."""
    given = json.load(stdin)
    state = given.get("state") or {"runs": 0}
    what = {pod["seq"]: kind for kind, pods in given["changes"].items() for pod in pods}
    print(f"run {given['run']}, in term {given['term_id']}", file=stderr)
    for pod in given["pods"]:
        payload = json.dumps(pod["payload"])
        mark = {"joined": "+", "changed": "~"}.get(what.get(pod["seq"], ""), " ")
        row = f"{mark} #{pod['seq']:<3} {pod['id']:<8} {pod['ip']:<11} {payload}"
        print(row, file=stderr)
    for kind in ("left", "lost"):
        for pod in given["changes"][kind]:
            print(f"- #{pod['seq']:<3} {pod['id']:<8} {pod['ip']:<11} {kind}", file=stderr)
    json.dump({"runs": state["runs"] + 1}, stdout)


if __name__ == "__main__":
    main(sys.stdin, sys.stdout, sys.stderr)
