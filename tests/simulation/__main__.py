"""Runs schedules: `python -m tests.simulation [SEED] [--count COUNT]`, from the top-level folder.

With a count it runs so many, from SEED on or from a seed drawn at random, on all processors, and
prints what failed, how often each rare branch was reached, and how to replay. With a seed alone it
prints the schedule, all that happened, the log of agents and masters, and the complaints;
`--shrink` first leaves out the steps that the first complaint does not need. Exit status 1 if there
were complaints.
"""

import argparse
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from random import SystemRandom

from tests.simulation.checker import check
from tests.simulation.history import show
from tests.simulation.rare import reached
from tests.simulation.schedule import FOURTH, Schedule, draw
from tests.simulation.simulate import judge, simulate
from tests.simulation.suite import never, table
from tests.support.simloop import START

COUNT = 1000
PROGRESS = 20  # lines


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("seed", type=int, nargs="?", help="default: drawn at random")
    parser.add_argument("--count", type=int, help=f"how many (default: {COUNT}, or a replay)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--shrink", action="store_true", help="leave out steps before a replay")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # after ending the processes
    seed, count = arguments.seed, arguments.count
    if seed is not None and count is None:
        schedule = draw(seed)
        return replay(shrink(schedule) if arguments.shrink else schedule)
    if seed is None:
        seed = SystemRandom().randrange(FOURTH, 2**31)
    return explore(range(seed, seed + (count or COUNT)), arguments.jobs)


def replay(schedule: Schedule) -> int:
    """Print all that is to be said of one schedule."""
    logging.disable(logging.NOTSET)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    _say([str(schedule)])
    history = simulate(schedule)
    complaints = check(history)
    _say([*show(history, START), *(complaints or ["no complaints"])])
    return int(bool(complaints))


def explore(seeds: range, jobs: int) -> int:
    """Run the schedules of `seeds`, in so many processes, and print what came of it."""
    _say([f"{len(seeds)} schedules from seed {seeds.start} on, in {jobs} processes"])
    began, failed = time.monotonic(), 0
    counts: Counter[str] = Counter()
    with ProcessPoolExecutor(jobs, initializer=logging.disable) as pool:
        every = max(1, len(seeds) // PROGRESS)
        for i, (seed, complaints, found) in enumerate(pool.map(look, seeds, chunksize=10), 1):
            failed += bool(complaints)
            counts.update(found)
            _say(f"seed {seed}: {text}" for text in complaints)
            if i % every == 0 or i == len(seeds):
                rate = i / (time.monotonic() - began)
                _say([f"{i} of {len(seeds)}, {failed} failed, {rate:.1f} a second"])
    _say(table(counts))
    missing = never(counts)
    if missing:
        _say(f"never reached: {name}" for name in missing)
    if failed:
        _say(["replay with: python -m tests.simulation SEED"])
    return int(failed > 0 or bool(missing))


def look(seed: int) -> tuple[int, list[str], Counter[str]]:
    """Run the schedule of `seed`; return it, the complaints, and what was reached how often."""
    try:
        history = simulate(draw(seed))
        return seed, check(history), reached(history)
    except Exception as error:  # noqa: BLE001 - of whatever kind: it is to be looked at
        return seed, [f"the simulation itself fails: {error!r}"], Counter()


def shrink(schedule: Schedule) -> Schedule:
    """Leave out every step without which the first complaint is still of its kind."""
    logging.disable()

    def kinds(schedule: Schedule) -> set[str]:
        return {text.partition(":")[0] for text in judge(schedule)}

    wanted = sorted(kinds(schedule))[:1]
    for step in schedule.steps[::-1]:
        fewer = replace(schedule, steps=tuple(s for s in schedule.steps if s is not step))
        if wanted and kinds(fewer).issuperset(wanted):
            schedule = fewer
    return schedule


def _say(lines: Iterable[str] | Iterator[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
