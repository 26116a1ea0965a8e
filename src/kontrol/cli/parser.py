"""The parser of the command line, made from the table of commands."""

import argparse
import re
from typing import NoReturn

from kontrol import __version__
from kontrol.cli.command import ALL_STATUSES, STATUSES
from kontrol.cli.contents import ROWS
from kontrol_common.text import escaped

_EXAMPLE = """\
example:
  KONTROL_MODE=debug KONTROL_ETCD=embedded KONTROL_CALLBACK='sh -c "echo $PODS >&2"' kontrol
"""
_INVALID = re.compile(r"(.*): invalid choice: '(.*)' \(choose from (.*)\)\Z", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """A parser that suggests the nearest valid word; the parsers of commands are of this class."""

    def error(self, message: str) -> NoReturn:
        """Leave with status 2."""
        if found := _INVALID.match(message):
            import difflib

            what, given, choices = found.groups()
            known = [choice.strip(" '\"") for choice in choices.split(",")]
            near = difflib.get_close_matches(given, known, 1)
            meant = f": did you mean {near[0]}?" if near else ""
            message = f"{what}: {given!r} is unknown{meant} (expected {', '.join(known)})"
        super().error(escaped(message, keep="\n"))


def parser(only: str | None = None) -> Parser:
    """Return the parser of all commands, from which completion and documentation are made.

    With `only`, other commands than that have a name and a help text, but no options: their modules
    are not imported.
    """
    root = Parser(
        prog="kontrol",
        description=(
            "Without a command: run the daemon, an agent, a master or both as KONTROL_MODE says."
        ),
        epilog=f"{_EXAMPLE}\n{ALL_STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    root.add_argument("--version", action="version", version=f"kontrol {__version__}")
    root.add_argument("-d", dest="debug", action="store_true", help="log debug messages")
    root.set_defaults(command=None, used=root)
    commands = root.add_subparsers(title="commands", metavar="COMMAND")
    for row in ROWS:
        if only not in (None, row.name):
            commands.add_parser(row.name, help=row.help, add_help=False)
            continue
        command = row.load()
        sub = commands.add_parser(
            row.name,
            help=row.help,
            description=row.description,
            epilog=f"example:\n  {command.example}\n\n{STATUSES}{command.statuses}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=not command.passes,
        )
        command.configure(sub)
        sub.set_defaults(command=command, used=sub)
    return root
