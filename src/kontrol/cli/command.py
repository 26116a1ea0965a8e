"""What all commands share: their row in the table, exit statuses, and messages to people."""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from kontrol_common.text import escaped

if TYPE_CHECKING:  # every command, and the daemon, imports this module: it imports little itself
    import argparse

    from kontrol.settings import Mistake
    from kontrol.settings.resolve import Resolved

DONE, INTERNAL, USAGE, NOTHING, UNANSWERED, REFUSED = range(6)
LOST = 7  # 6 is that of `status`
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

STATUSES = """\
exit status:
  0  done
  1  internal error: please report the traceback
  2  wrong configuration or usage
  3  nothing matched
"""

ALL_STATUSES = f"""\
{STATUSES}\
  4  no answer from a master, etcd or an agent
  5  refused; for invoke: some pods failed
  6  for status: a master answered, and there are problems
  7  for set and unset: the value is not the expected one
  130  interrupted from the keyboard

See `kontrol COMMAND --help` for what they mean for each command.
"""


class Command(NamedTuple):
    """What a command does. `statuses` are the lines of its help on its own exit statuses.

    `run` gets the options and, if `passes`, all words after the command's name, which it parses
    with the parser that `parser` returns; completion and the documentation are made from that.
    """

    example: str
    run: "Callable[[argparse.Namespace, list[str]], int]"
    configure: "Callable[[argparse.ArgumentParser], None]" = lambda _parser: None
    statuses: str = ""
    passes: bool = False
    parser: "Callable[[], argparse.ArgumentParser] | None" = None


def seconds(text: str) -> float:
    """Parse a time limit. Raises `argparse.ArgumentTypeError`."""
    import argparse

    from kontrol.ensemble.numbers import decimal

    with contextlib.suppress(ValueError):
        number = decimal(text)
        if 0 < number <= 86_400:
            return number
    raise argparse.ArgumentTypeError(
        f"{text!r}: expected a number of seconds over 0 and up to 86400, as 25 or 0.5"
    )


def count(least: int, most: int, what: str = "") -> Callable[[str], int]:
    """Return a parser of whole numbers, for argparse; `what` is its error message."""
    import argparse

    from kontrol.ensemble.numbers import whole

    def parse(text: str) -> int:
        try:
            return whole(text, least, most)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {what or error}") from None

    return parse


def warn_of_readers(what: str, remedy: str) -> None:
    """Warn if standard output, which gets secrets, is a file that others can read."""
    import stat

    try:
        found = os.fstat(sys.stdout.fileno())
    except (OSError, ValueError):  # it is closed, or has no descriptor
        return
    if stat.S_ISREG(found.st_mode) and (mode := found.st_mode & 0o777) & 0o077:
        say(f"warning: others can read this file (mode {mode:03o}), which gets {what}: {remedy}")


def check_cloud(resolved: "Resolved") -> None:
    """Add a mistake if KONTROL_CLOUD is set and names no cloud that boot knows."""
    from kontrol.settings import variables as v

    if resolved.get(v.CLOUD) not in (None, "auto", "none"):
        from kontrol.boot.cloud import check_name

        check_name(resolved)


def complain(resolved: "Resolved") -> int:
    """Print every mistake in the settings, and what may explain it. Returns the exit status."""
    import logging

    for level, text in resolved.notes:
        say(f"{logging.getLevelName(level).lower()}: {text}")
    return refuse(resolved.mistakes)


def refuse(mistakes: "Sequence[Mistake]") -> int:
    """Print every mistake in the settings. Returns the exit status."""
    if not mistakes:
        return DONE
    from kontrol.settings import SettingsError

    say(str(SettingsError(mistakes)))
    return USAGE


def say(text: str) -> None:
    """Print a message for a person on standard error, safe for a terminal."""
    print("kontrol:", escaped(text, keep="\n"), file=sys.stderr)
