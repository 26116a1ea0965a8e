"""`kontrol demo`: a whole ensemble on loopback, what is done to it, and how Kontrol reacts."""

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kontrol.demo.daemons import DemoError
from kontrol.demo.scenario import Scenario, Screen
from kontrol.ensemble.numbers import decimal
from kontrol.store.embedded import EmbeddedError

PACE = 1.5  # seconds between steps


def parser() -> argparse.ArgumentParser:
    """Return the parser of its options."""
    made = argparse.ArgumentParser(
        prog="kontrol demo",
        description="Run a whole ensemble on this machine for half a minute, and show what "
        "happens.",
        epilog="exit status:\n  0  done\n  1  failed: the last lines say why\n  2  wrong usage\n"
        "  130  interrupted from the keyboard or by a signal; all processes were ended",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--pace",
        type=decimal,
        default=PACE,
        metavar="SECONDS",
        help="pause between two steps (default: %(default)s)",
    )
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the demo; returns the exit status: 0, 1 if it failed, 130 if it was interrupted."""
    pace = parser().parse_args(arguments).pace
    screen = Screen(sys.stdout)
    try:
        asyncio.run(_run(screen, pace))
    except* (DemoError, EmbeddedError) as group:
        for error in group.exceptions:
            print(f"kontrol demo: {error}", file=sys.stderr)
        status = 1
    except* (KeyboardInterrupt, asyncio.CancelledError):
        screen.note("interrupted")
        status = 0 if screen.closed else 130
    else:
        status = 0
    return status


async def _run(screen: Screen, pace: float) -> None:
    task = asyncio.current_task()
    assert task is not None, "this is a task"  # noqa: S101
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    screen.when_closed(task.cancel)
    with tempfile.TemporaryDirectory(prefix="kontrol-demo-") as folder:
        await Scenario(screen, pace).run(Path(folder))
