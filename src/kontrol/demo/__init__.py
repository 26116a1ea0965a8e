"""The demonstration: a whole ensemble on loopback, and what happens to it, told as it happens."""

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kontrol.demo.screen import Screen
from kontrol.demo.stage import StageError
from kontrol.demo.story import Story
from kontrol.ensemble.numbers import decimal
from kontrol.store.embedded import EmbeddedError

PACE = 1.5  # seconds between acts


def parser() -> argparse.ArgumentParser:
    """Return the parser of its options."""
    made = argparse.ArgumentParser(
        prog="kontrol demo",
        description="Show a whole ensemble on loopback, and what happens to it, in half a minute.",
        epilog="exit status:\n  0  done\n  1  it could not be played: the last lines say why\n"
        "  2  usage\n  130  interrupted from the keyboard, or by a signal; all was ended",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--pace",
        type=decimal,
        default=PACE,
        metavar="SECONDS",
        help="pause between two acts (default: %(default)s)",
    )
    return made


def main(arguments: Sequence[str]) -> int:
    """Play the demonstration; returns the status: 130 if interrupted, 1 if it cannot be played."""
    pace = parser().parse_args(arguments).pace
    screen = Screen(sys.stdout)
    try:
        asyncio.run(_play(screen, pace))
    except* (StageError, EmbeddedError) as group:
        for error in group.exceptions:
            print(f"kontrol demo: {error}", file=sys.stderr)
        status = 1
    except* (KeyboardInterrupt, asyncio.CancelledError):
        screen.note("interrupted")
        status = 0 if screen.left else 130
    else:
        status = 0
    return status


async def _play(screen: Screen, pace: float) -> None:
    task = asyncio.current_task()
    assert task is not None, "this is a task"  # noqa: S101
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    screen.when_left(task.cancel)
    with tempfile.TemporaryDirectory(prefix="kontrol-demo-") as folder:
        await Story(screen, pace).play(Path(folder))
