"""A small daemon for tests to stop and kill: runs one shell script, a number of times, by a guard.

Told by one JSON object as its argument; prints one JSON object per line: the guard's id first, then
each outcome, and at last whether any child was left.
"""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from kontrol.process.clock import boottime
from kontrol.process.command import Command
from kontrol.process.guard import Guard
from kontrol_common.processes import become_subreaper, children


def tell(message: Mapping[str, Any]) -> None:
    print(json.dumps(message), flush=True)


async def main(told: Mapping[str, Any]) -> None:
    become_subreaper()
    async with Guard(known=list) as guard:
        tell({"guard": guard.pid})
        for _ in range(told.get("times", 1)):
            command = Command(
                ("/bin/sh", "-c", told["script"]),
                {**os.environ, **told["env"]},
                scratch=told.get("scratch"),
            )
            deadline = boottime() + told["seconds"]
            outcome = await guard.run(command, deadline=deadline)
            tell({"reason": outcome.reason, "signal": outcome.signal})
    tell({"children": children(os.getpid())})


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
