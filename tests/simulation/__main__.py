"""Replays schedules: `python -m tests.simulation SEED [COUNT]`, from the top-level folder.

With one seed it prints the schedule, all that happened, the log of agents and masters, and the
complaints; with a count only those seeds that failed. Exit status 1 if there were any.
"""

import argparse
import logging
import sys
from collections.abc import Iterator

from tests.simulation.checker import check
from tests.simulation.history import show
from tests.simulation.schedule import draw
from tests.simulation.simulate import judge, simulate
from tests.support.simloop import START


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("seed", type=int)
    parser.add_argument("count", type=int, nargs="?", default=1)
    arguments = parser.parse_args()
    if arguments.count == 1:
        lines = list(replay(arguments.seed))
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        return int(lines[-1].startswith("invariant"))
    logging.disable()
    failed = 0
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        complaints = judge(draw(seed))
        failed += bool(complaints)
        for text in complaints:
            sys.stdout.write(f"seed {seed}: {text}\n")
    sys.stdout.write(f"{failed} of {arguments.count} schedules failed\n")
    return int(failed > 0)


def replay(seed: int) -> Iterator[str]:
    """Yield what is to be said of one seed."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    schedule = draw(seed)
    yield str(schedule)
    history = simulate(schedule)
    yield from show(history, START)
    yield from check(history, schedule.ttl) or ["no complaints"]


if __name__ == "__main__":
    sys.exit(main())
