"""The commands of `kontrol`. Without a command, it runs the daemon that the environment configures.

The table of commands is `contents`. What a command needs is imported when it is given, and the
parser of arguments when there are any, so that a command starts fast and a daemon stays small
(decision 0178).
"""

import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kontrol import __version__
from kontrol.cli.command import DONE, INTERRUPTED, check_cloud, complain, say
from kontrol_common.openssl import without_openssl

if TYPE_CHECKING:
    import argparse
    from types import TracebackType

    from kontrol.cli.command import Command


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Raises `SystemExit` for help and wrong usage."""
    sys.excepthook = _internal_error
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    words = sys.argv[1:] if argv is None else argv
    try:
        status = _command(words) if words else _daemon(debug=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # as in `kontrol config | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    return status


def _command(words: Sequence[str]) -> int:
    from kontrol.cli.parser import parser

    # The options before a command take no value: the first word that is none names it.
    root = parser(next((word for word in words if not word.startswith("-")), ""))
    options, others = root.parse_known_args(words)
    command: Command | None = options.command
    if others and not (command and command.passes):
        used: argparse.ArgumentParser = options.used
        used.error(f"unrecognized arguments: {' '.join(others)}")
    return command.run(options, others) if command else _daemon(debug=options.debug)


def _daemon(*, debug: bool) -> int:
    from kontrol.settings import assemble, examine
    from kontrol.settings import variables as v

    resolved = examine(os.environ)
    check_cloud(resolved)
    if resolved.mistakes:
        status = complain(resolved)
        if v.MODE.name not in os.environ:
            say(
                "to try Kontrol: `kontrol demo`, or KONTROL_MODE=debug with KONTROL_ETCD=embedded "
                "(or an etcd on this host)"
            )
        return status
    settings = assemble(resolved)
    if debug:
        settings = settings.replace(v.MODE, settings[v.MODE] | {"verbose"})

    if not settings.tls:
        without_openssl()

    from kontrol.daemon import run
    from kontrol.logs import log_to

    with log_to(sys.stdout, settings[v.LOG], debug=settings.verbose):
        return run(settings)


def _internal_error(
    kind: type[BaseException], error: BaseException, trace: "TracebackType | None"
) -> None:
    """Print an unexpected error; the interpreter then exits with status 1."""
    import traceback

    traceback.print_exception(kind, error, trace)
    say(
        f"internal error in version {__version__}. This is a bug in Kontrol: please report it with "
        "the lines above."
    )
