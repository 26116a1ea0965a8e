"""What the commands that use REST share: their options, the client, and how they print."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from kontrol.cli.command import refuse, say, seconds
from kontrol.settings import SettingsError, booted
from kontrol.settings.private import exposed
from kontrol.settings.private import read_token as read_local_token

if TYPE_CHECKING:  # these are imported when a command runs: `kontrol --help` needs none of them
    from kontrol.cli.rest import Rest
    from kontrol.cli.table import Console
    from kontrol.ensemble.canonical import JSON

WRONG = 6
ASKING = """\
  4  no master answered
  5  refused: token missing or insufficient
"""
Work: TypeAlias = Callable[[argparse.Namespace, "Rest", "Console"], int]


def asking(work: Work) -> Callable[[argparse.Namespace, list[str]], int]:
    """Make a command: create the client, do the work with it, and report its failures."""

    def run(options: argparse.Namespace, _others: list[str]) -> int:
        from kontrol.cli.address import find
        from kontrol.cli.rest import Rest, RestError, check_ca, read_token
        from kontrol.cli.table import Console

        tell: Callable[[str], None] = say if options.verbose else lambda _text: None
        try:
            left = booted.read(os.environ)
            target = find(os.environ, options.master, tls=options.ca is not None, booted=left)
            token = read_token(target.token_file)
            check_ca(options.ca)
        except SettingsError as error:
            return refuse(error.mistakes)
        if target.token_file is not None and (warning := exposed(target.token_file)) is not None:
            say(f"warning: {warning}")
        if target.note:
            say(target.note)
        tell(f"asking {' or '.join(map(str, target.endpoints))} (from {target.source})")
        console = Console.of(sys.stdout, os.environ, _reach(options))
        rest = Rest(
            target.endpoints,
            token=token,
            token_file=target.token_file,
            own=lambda each: read_local_token(os.environ, each.host, each.port),
            ca=options.ca,
            timeout=options.timeout,
            tell=tell,
        )
        try:
            return work(options, rest, console)
        except RestError as error:
            say(console.remedy(str(error)))
            return error.exit_status

    return run


def _reach(options: argparse.Namespace) -> str:
    """Return the options that name the masters, to be added to another command."""
    given = {"--master": options.master, "--ca": options.ca}
    return "".join(f" {name} {shlex.quote(str(text))}" for name, text in given.items() if text)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options that all of these commands take."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--master",
        metavar="WHERE",
        help="the masters: host, host:port of REST, host|host, or http(s)://host:port (default: "
        "KONTROL_MASTER, else the master of this environment, the tier that its agent reports "
        "to, or this host)",
    )
    parser.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        help="use TLS, and accept certificates that are signed by the authority in this PEM file",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=5.0,
        metavar="SECONDS",
        help="how long to wait for the answer of each master (default: %(default)g)",
    )
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="show which masters are asked, and what each answers",
    )


def items(document: "dict[str, JSON]", name: str) -> "list[JSON]":
    """Return a list in the document, empty if there is none."""
    found = document.get(name)
    return found if isinstance(found, list) else []


def show(lines: Iterable[str]) -> None:
    """Print lines."""
    print("\n".join(lines))


def show_json(value: "JSON") -> None:
    """Print a document."""
    from kontrol_common.text import escaped_json

    print(escaped_json(value, indent=2))
