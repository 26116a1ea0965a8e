"""The process that is many agents: `python -m bench.generator OPTIONS`, both as JSON.

It reads commands on standard input, a line each, and answers each with a line. At the end of its
input it ends.

* `join`: connect, and have every agent acknowledged once.
* `loop`: keepalives in a closed loop, for some seconds, or some number of them.
* `steady`: from now on, each agent reports as a real one does. The answer comes immediately.
* `mark`: count from now on which agents are acknowledged.
* `until`: go on until all are since then, for at most some seconds.
* `report`: what came of the keepalives since the last report.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from bench.agents import ClosedLoop, Crowd, Pace, Steady, Tally


@dataclass(frozen=True, slots=True)
class Options:
    """`hosts` of the masters, `agents` from number `first` on; `ttl` is in seconds."""

    hosts: tuple[str, ...]
    port: int
    agents: int
    ttl: float = 25.0
    first: int = 0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Load:
    """What came of keepalives within `seconds`; `cpu` is what this process spent on them.

    `p50`, `p99` and `most` are seconds from a keepalive to its acknowledgement. `peak` is the
    highest rate of acknowledgements per second. `left` counts the agents that have not reached
    what the command is for. `began` and `ended` are monotonic time.
    """

    seconds: float
    cpu: float
    sent: int
    acknowledged: int
    late: int
    broken: int
    refused: dict[str, int]
    p50: float
    p99: float
    most: float
    peak: float
    left: int
    began: float
    ended: float

    @property
    def rate(self) -> float:
        """Acknowledgements per second."""
        return self.acknowledged / self.seconds


class Generator:
    """Carries out commands, one after another."""

    def __init__(self, options: Options) -> None:
        self._crowd = Crowd(
            hosts=options.hosts,
            port=options.port,
            first=options.first,
            agents=options.agents,
            ttl=options.ttl,
            seed=options.seed,
        )
        self._random = Random(options.seed)
        self._pace: Pace | None = None
        self._mark()

    def serve(self) -> None:
        """Read and answer commands until there are no more."""
        while True:
            if self._pace is not None:
                self._crowd.run(self._pace, lambda _: False, sys.stdin.fileno())
            line = sys.stdin.readline()
            if not line:
                self._crowd.end()
                return
            command: dict[str, Any] = json.loads(line)
            load: Load = getattr(self, command.pop("do"))(**command)
            print(json.dumps(asdict(load)), flush=True)

    def join(self, under_way: int, within: float) -> Load:
        """Have every agent acknowledged once."""
        self._mark()
        loop = ClosedLoop(self._crowd, under_way, once=True)
        return self._loop(loop, under_way, lambda: not loop.left, within)

    def loop(self, under_way: int, seconds: float, *, count: int = 0, change: bool = False) -> Load:
        """Send in a closed loop for `seconds`, or until `count` are acknowledged."""
        self._mark()
        tally = self._crowd.tally
        return self._loop(
            ClosedLoop(self._crowd, under_way, change=change),
            under_way,
            lambda: bool(count) and tally.acknowledged >= count,
            seconds,
        )

    def _loop(
        self, pace: ClosedLoop, under_way: int, done: Callable[[], bool], within: float
    ) -> Load:
        end = time.monotonic() + within
        self._crowd.run(pace, lambda now: done() or now >= end)
        load = self._load(pace.left)
        pace.stopped = True
        self._crowd.run(pace, lambda _: pace.free == under_way)  # each attempt ends by itself
        self._mark()
        return load

    def steady(self) -> Load:
        """Let agents report from now on."""
        self._pace = Steady(self._crowd, self._random)
        self._mark()
        return self._load(0)

    def mark(self) -> Load:
        """Count from now on which agents are acknowledged."""
        self._crowd.mark()
        return self._load(self._crowd.left)

    def until(self, within: float) -> Load:
        """Go on until all are acknowledged since `mark`."""
        assert self._pace is not None
        end = time.monotonic() + within
        self._crowd.run(self._pace, lambda now: not self._crowd.left or now >= end)
        return self._load(self._crowd.left)

    def report(self) -> Load:
        """Return what came of the keepalives since the last time."""
        return self._load(0)

    def _mark(self) -> None:
        self._crowd.tally = Tally()
        self._began, self._cpu = time.monotonic(), time.process_time()

    def _load(self, left: int) -> Load:
        """Return what came of the keepalives since the last time, and begin again."""
        now, tally = time.monotonic(), self._crowd.tally
        load = Load(
            seconds=now - self._began,
            cpu=time.process_time() - self._cpu,
            sent=tally.sent,
            acknowledged=tally.acknowledged,
            late=tally.late,
            broken=tally.broken,
            refused=dict(tally.refused),
            p50=tally.times.percentile(0.5),
            p99=tally.times.percentile(0.99),
            most=tally.times.percentile(1.0),
            peak=tally.peak(),
            left=left,
            began=self._began,
            ended=now,
        )
        self._mark()
        return load


def main() -> None:
    """Run as a command."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    given = json.loads(sys.argv[1])
    Generator(Options(**{**given, "hosts": tuple(given["hosts"])})).serve()


if __name__ == "__main__":
    main()
