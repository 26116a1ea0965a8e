"""The commands of `kontrol`. Without a command, it runs the daemon that the environment configures.

Each command is one row of a table: its options, what it does, and an example for its help. What a
command needs is imported when it runs, so that `kontrol config` is quick.
"""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType

from kontrol import __version__
from kontrol.cli import boot, keys, local
from kontrol.cli.command import (
    ALL_STATUSES,
    DONE,
    INTERRUPTED,
    STATUSES,
    Command,
    Parser,
    complain,
    say,
)
from kontrol.cli.invoke import commands as invoke
from kontrol.cli.operate import commands as operate
from kontrol.settings import assemble, examine
from kontrol.settings import variables as v

COMMANDS = (
    *local.COMMANDS,
    *operate.COMMANDS,
    *invoke.COMMANDS,
    *keys.COMMANDS,
    *boot.COMMANDS,
)

_EXAMPLE = """\
example:
  KONTROL_MODE=debug KONTROL_ETCD=embedded KONTROL_CALLBACK='sh -c "echo $PODS >&2"' kontrol
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Raises `SystemExit` for help and wrong usage."""
    sys.excepthook = _internal_error
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    root = parser()
    options, others = root.parse_known_args(argv)
    command: Command | None = options.command
    if others and not (command and command.passes):
        used: argparse.ArgumentParser = options.used
        used.error(f"unrecognized arguments: {' '.join(others)}")
    try:
        status = command.run(options, others) if command else _daemon(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # as in `kontrol config | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    return status


def _daemon(options: argparse.Namespace) -> int:
    resolved = examine(os.environ)
    boot.check_cloud(resolved)
    if resolved.mistakes:
        status = complain(resolved)
        if v.MODE.name not in os.environ:
            say(
                "to try Kontrol: `kontrol demo`, or KONTROL_MODE=debug with KONTROL_ETCD=embedded "
                "(or an etcd on this host)"
            )
        return status
    settings = assemble(resolved)
    if options.debug:
        settings = settings.replace(v.MODE, settings[v.MODE] | {"verbose"})

    from kontrol.daemon import run
    from kontrol.logs import log_to

    with log_to(sys.stdout, settings[v.LOG], debug=settings.verbose):
        return run(settings)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands, from which completion and documentation are made."""
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
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=f"example:\n  {command.example}\n\n{STATUSES}{command.statuses}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=not command.passes,
        )
        command.configure(sub)
        sub.set_defaults(command=command, used=sub)
    return root


def _internal_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an unexpected error; the interpreter then exits with status 1."""
    traceback.print_exception(kind, error, trace)
    say(
        f"internal error in version {__version__}. This is a bug in Kontrol: please report it with "
        "the lines above."
    )
