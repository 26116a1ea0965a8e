"""Many agents that follow what is published, in one process: the code of a real agent for each.

`python -m bench.follower HOST PORT AGENTS FOLDER`. It prints a line of JSON for what it measured
alone, and one for each version once the last agent has it in its file; times are monotonic.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kontrol.agent.published import PublishedFile
from kontrol.rpc.client import Client

ROUNDS = 3


class File(PublishedFile):
    """The file of one agent, which says when it was replaced."""

    def __init__(self, path: Path, tally: "Tally") -> None:
        super().__init__(path, ("masters",), pod="x", uniform=random.random)
        self._tally = tally

    def _want(self) -> None:
        self._tally.replaced(self.status.version)


class Tally:
    """When each version was in the files."""

    def __init__(self, agents: int) -> None:
        self._agents = agents
        self._times: dict[int, list[float]] = {}

    def replaced(self, version: int) -> None:
        """Note that one more file has that version."""
        times = self._times.setdefault(version, [])
        times.append(time.monotonic())
        if len(times) == self._agents:
            say(version=version, times=[times[0], times[len(times) // 2], times[-1]])
            del self._times[version]


def say(**what: object) -> None:
    """Print a line of JSON."""
    print(json.dumps(what), flush=True)


def alone(files: Sequence[File], size: int) -> float:
    """Return the seconds that the files take without masters: the limit of this process."""
    taken = []
    for version in range(-ROUNDS, 0):
        text = json.dumps({"documents": {"bench": "x" * size}, "version": version + 2**20})
        begun = time.monotonic()
        for file in files:
            file._take(0, text)  # noqa: SLF001 - what an answer leads to
        taken.append(time.monotonic() - begun)
    return min(taken)


async def main(host: str, port: int, agents: int, folder: Path, size: int) -> None:
    """Follow until killed."""
    quiet = Tally(0)
    scratch = [File(folder / f"alone{i}.json", quiet) for i in range(agents)]
    say(alone=alone(scratch, size))
    tally = Tally(agents)
    async with asyncio.TaskGroup() as group:
        for i in range(agents):
            client = Client(host, port)
            file = File(folder / f"{i}.json", tally)
            group.create_task(file.follow("masters", client, pause=1.0))


if __name__ == "__main__":
    asyncio.run(
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
    )
