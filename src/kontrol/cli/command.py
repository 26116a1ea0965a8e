"""What every command is made of: its row in the table, its exit status, and how it complains."""

import argparse
import contextlib
import difflib
import logging
import os
import re
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from kontrol.ensemble.numbers import decimal, whole
from kontrol.settings import Mistake, SettingsError
from kontrol.settings.resolve import Resolved
from kontrol_common.text import escaped

DONE, INTERNAL, USAGE, NOTHING, UNANSWERED, REFUSED = range(6)
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

STATUSES = """\
exit status:
  0  done
  1  internal error: a traceback, which we ask you to report
  2  configuration or usage
  3  nothing matched
"""

ALL_STATUSES = f"""\
{STATUSES}\
  4  nobody answered: no master, no etcd, no agent
  5  refused; for invoke: some pods failed
  6  status: a master answered, and something is wrong
  130  interrupted from the keyboard

What a command means by them, `kontrol COMMAND --help` tells.
"""

_INVALID = re.compile(r"(.*): invalid choice: '(.*)' \(choose from (.*)\)\Z", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """A parser that names the nearest of what it knows; those of commands are made of it, too."""

    def error(self, message: str) -> NoReturn:
        """Leave with status 2."""
        if found := _INVALID.match(message):
            what, given, choices = found.groups()
            known = [choice.strip(" '\"") for choice in choices.split(",")]
            near = difflib.get_close_matches(given, known, 1)
            meant = f": did you mean {near[0]}?" if near else ""
            message = f"{what}: there is no {given!r}{meant} (there are {', '.join(known)})"
        super().error(message)


@dataclass(frozen=True, slots=True)
class Command:
    """One command. `statuses` are lines on exit statuses of its own.

    `run` takes the options and, if `passes` (it parses them itself), all other words; `parser`
    then returns the parser that it does so with, for completion and the documentation.
    """

    name: str
    help: str
    example: str
    run: Callable[[argparse.Namespace, list[str]], int]
    configure: Callable[[argparse.ArgumentParser], None] = lambda _parser: None
    statuses: str = ""
    passes: bool = False
    parser: Callable[[], argparse.ArgumentParser] | None = None


def seconds(text: str) -> float:
    """A time limit, for argparse."""
    with contextlib.suppress(ValueError):
        number = decimal(text)
        if 0 < number <= 86_400:
            return number
    raise argparse.ArgumentTypeError(
        f"{text!r}: expected seconds, over 0 and up to 86400, in digits 0-9 as 25 or 0.5"
    )


def count(least: int, most: int, what: str = "") -> Callable[[str], int]:
    """Return a parser of whole numbers, for argparse; `what` is told of a number that is none."""

    def parse(text: str) -> int:
        try:
            return whole(text, least, most)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {what or error}") from None

    return parse


def warn_of_readers(what: str, remedy: str) -> None:
    """Warn if what is secret goes to standard output, and that is a file that others can read."""
    try:
        found = os.fstat(sys.stdout.fileno())
    except (OSError, ValueError):  # it is closed, or no file of the system
        return
    if stat.S_ISREG(found.st_mode) and (mode := found.st_mode & 0o777) & 0o077:
        say(f"warning: others can read this file (mode {mode:03o}), which gets {what}: {remedy}")


def complain(resolved: Resolved) -> int:
    """Tell every mistake, and the remarks that may explain it; returns the status."""
    for level, text in resolved.notes:
        say(f"{logging.getLevelName(level).lower()}: {text}")
    return refuse(resolved.mistakes)


def refuse(mistakes: Sequence[Mistake]) -> int:
    """Tell every mistake in the settings; returns the status."""
    if not mistakes:
        return DONE
    say(str(SettingsError(mistakes)))
    return USAGE


def say(text: str) -> None:
    """Print a message for a person on standard error, safe for a terminal."""
    print("kontrol:", escaped(text, keep="\n"), file=sys.stderr)
