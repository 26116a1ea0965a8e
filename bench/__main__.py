"""`python -m bench`: every benchmark, one after another; `python -m bench NAME`: one of them."""

import argparse
import asyncio
import importlib
import sys
from functools import partial
from pathlib import Path
from typing import cast

from bench import Bench, Value, report
from bench.table import show

BENCHES = {
    "changes": "a change on a pod to the callback's start",
    "failover": "the leader's end to the next leader",
    "keepalives": "acknowledged keepalives that say nothing new, and the master's CPU for each",
    "writes": "new pods and changed records per second",
    "fleet": "CPU and memory of one master, by the number of agents",
    "crowd": "all agents of a master that dies, until the other has acknowledged them",
    "dying": "many pods that die together, until the callback",
    "publish": "what a run publishes, from its commit to the files of all agents",
    "footprint": "memory, threads and idle CPU of agents and a master",
    "commands": "the time that a command takes from its start to its end",
    "imports": "memory and CPU that importing a module takes",
    "invoke": "remote commands",
    "automaton": "the state machine of shell scripts",
    "redis": "fail-over of a Redis primary, beside Sentinel's; needs root and redis-server",
    "nginx": "requests through an nginx that follows the ensemble; needs nginx",
    "image": "the image and its containers; needs root and podman",
}
ALONE = ("redis", "nginx", "image")
"""What runs only by its name."""


def load(name: str) -> Bench:
    """Return a benchmark."""
    return cast("Bench", importlib.import_module(f"bench.{name}"))


def value(like: Value, text: str) -> Value:
    """Read an option of the type of its default."""
    if isinstance(like, tuple):
        return tuple(int(word) for word in text.split(","))
    return type(like)(text)


def parser(name: str | None) -> argparse.ArgumentParser:
    """Return the parser of one benchmark's options, or of all benchmarks'."""
    listed = "\n".join(f"  {each:12}{what}" for each, what in BENCHES.items())
    made = argparse.ArgumentParser(
        prog=f"python -m bench {name or ''}".strip(),
        description=load(name).__doc__ if name else f"{__doc__}\n\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--quick", action="store_true", help="a short run, to see that it works")
    made.add_argument(
        "--json",
        type=Path,
        help="a folder for the results"
        f"{', or a file, which ends in .json' if name else ''} (default: bench/results/)",
    )
    if name is None:
        made.add_argument("name", nargs="?", choices=BENCHES, help="run this one alone")
        made.add_argument("--list", action="store_true", help="list the benchmarks")
        return made
    for option, has in load(name).OPTIONS.items():
        made.add_argument(
            f"--{option.replace('_', '-')}",
            type=partial(value, has.default),
            help=f"{has.help} (default: {_shown(has.default)})",
        )
    return made


def _shown(given: Value) -> str:
    return ",".join(map(str, given)) if isinstance(given, tuple) else str(given)


async def measure(name: str, arguments: argparse.Namespace, path: Path) -> None:
    """Run one benchmark: print its table, and write the run to a file."""
    bench = load(name)
    options: dict[str, Value] = {}
    for option, has in bench.OPTIONS.items():
        given = getattr(arguments, option, None)
        default = has.quick if arguments.quick else has.default
        options[option] = default if given is None else given
    where = await report.environment()
    rows = await bench.run(**options)
    show(bench.TITLE, rows)
    report.write(report.document(name, bench.TITLE, rows, options, where), path)
    print(f"\nwritten to {path}")


def main(words: list[str]) -> None:
    """Run as a command."""
    name = words[0] if words and words[0] in BENCHES else None
    reader = parser(name)
    arguments = reader.parse_args(words[1:] if name else words)
    if name is None:
        if arguments.list:
            for each, what in BENCHES.items():
                print(f"{each:12}{what}")
            return
        name = arguments.name  # after the options that all have
    given = arguments.json
    if name is None and given is not None and given.suffix == ".json":
        reader.error(f"--json {given}: one file for several runs. Give a folder, or one NAME.")
    names = [name] if name else [each for each in BENCHES if each not in ALONE]
    for each in names:
        try:
            report.prepare(report.place(given, each))
        except OSError as error:
            reader.error(
                f"{error.filename} cannot be written: {error.strerror}. Give another --json: a "
                "folder, or a file, which ends in .json."
            )
    for each in names:
        asyncio.run(measure(each, arguments, report.place(given, each)))
    if name is None:
        for each in ALONE:
            print(f"\nleft out: {each}. Run python -m bench {each}")


if __name__ == "__main__":
    main(sys.argv[1:])
