"""The commands. Without one, the daemon runs as the environment says.

Each command is one row of `COMMANDS`: what its parser takes, what it does, and an example for its
help. What a command needs is imported when it runs, so that `kontrol config` is quick.
"""

import argparse
import dataclasses
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kontrol import __version__
from kontrol.settings import Mistake, SettingsError, assemble, examine
from kontrol.settings import variables as v
from kontrol.settings.resolve import Resolved, resolve

_LEAVE = (v.CONTROL.name, v.PORT.name)  # what tells where an agent is asked to leave

DONE, INTERNAL, USAGE, NOTHING, UNANSWERED = range(5)
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

_EXAMPLE = """\
example:
  KONTROL_MODE=debug KONTROL_ETCD=embedded KONTROL_CALLBACK='sh -c "echo $PODS >&2"' kontrol
"""
_STATUSES = """\
exit status:
  0  done
  1  internal error: a traceback, which we ask you to report
  2  configuration or usage
  3  nothing matched
"""


@dataclass(frozen=True, slots=True)
class Command:
    """One command. `statuses` are lines on exit statuses of its own.

    `run` takes the options and, if `passes` (it parses them itself), all other words.
    """

    name: str
    help: str
    example: str
    run: Callable[[argparse.Namespace, list[str]], int]
    configure: Callable[[argparse.ArgumentParser], None] = lambda _parser: None
    statuses: str = ""
    passes: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Leaves by `SystemExit` for help and bad usage."""
    sys.excepthook = _internal_error
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    parser = _parser()
    options, others = parser.parse_known_args(argv)
    command: Command | None = options.command
    if others and not (command and command.passes):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    try:
        status = command.run(options, others) if command else _daemon(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # as in `kontrol config | head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    return status


def _daemon(options: argparse.Namespace) -> int:
    resolved = examine(os.environ)
    if resolved.mistakes:
        status = _complain(resolved)
        if v.MODE.name not in os.environ:
            _say("to try things out: `kontrol demo`, or KONTROL_MODE=debug with an etcd beside it")
        return status
    settings = assemble(resolved)
    if options.debug:
        settings = dataclasses.replace(settings, mode=settings.mode | {"verbose"})

    from kontrol.daemon import run
    from kontrol.logs import log_to

    with log_to(sys.stdout, settings.log, debug=settings.verbose):
        return run(settings)


def _config(options: argparse.Namespace, _others: list[str]) -> int:
    from kontrol.settings.report import as_json, as_table

    resolved = examine(os.environ)
    print((as_json if options.json else as_table)(resolved), flush=True)
    return _complain(resolved)


def _leave(options: argparse.Namespace, _others: list[str]) -> int:
    from kontrol.agent.control import ControlError, default_path, leave

    path = options.socket
    if path is None:
        resolved = resolve(os.environ, {})
        # Of all settings only these two: an application's container need know no more.
        wrong = [mistake for mistake in resolved.mistakes if mistake.name in _LEAVE]
        if wrong:
            return _refuse(wrong)
        path = resolved.get(v.CONTROL) or default_path(resolved.require(v.PORT), os.environ)
    try:
        leave(path, options.timeout)
    except ControlError as error:
        _say(str(error))
        return UNANSWERED
    return DONE


def _demo(_options: argparse.Namespace, others: list[str]) -> int:
    from kontrol.demo import main as demo

    return demo(others)


def _configure_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _configure_leave(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help=f"the agent's control socket (default: as {' and '.join(_LEAVE)} say)",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="how long to wait for the agent (default: %(default)g)",
    )


COMMANDS = (
    Command(
        "config",
        "print the settings in force, and where each came from",
        "KONTROL_MODE=debug kontrol config",
        _config,
        _configure_config,
    ),
    Command(
        "leave",
        "have this pod's agent say farewell early, from an application's preStop hook say",
        "kontrol leave --timeout 5",
        _leave,
        _configure_leave,
        statuses="  4  the agent could not be asked, or a tier does not know that it left\n",
    ),
    Command(
        "demo",
        "show a whole ensemble at work on this machine, in a minute",
        "kontrol demo",
        _demo,
        passes=True,
    ),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kontrol",
        description=(
            "Without a command: run the daemon (agent, master or both) as the environment says."
        ),
        epilog=f"{_EXAMPLE}\n{_STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"kontrol {__version__}")
    parser.add_argument("-d", dest="debug", action="store_true", help="log debug lines")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=f"example:\n  {command.example}\n\n{_STATUSES}{command.statuses}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=not command.passes,
        )
        command.configure(sub)
        sub.set_defaults(command=command)
    return parser


def _seconds(text: str) -> float:
    """A time limit, as argparse wants its parsers: `ValueError` becomes a usage error."""
    number = float(text)
    if not 0 < number <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, over 0 and up to 86400")
    return number


def _complain(resolved: Resolved) -> int:
    """Tell every mistake, and the remarks that may explain it; returns the status."""
    for level, text in resolved.notes:
        _say(f"{logging.getLevelName(level).lower()}: {text}")
    return _refuse(resolved.mistakes)


def _refuse(mistakes: Sequence[Mistake]) -> int:
    if not mistakes:
        return DONE
    _say(str(SettingsError(mistakes)))
    return USAGE


def _say(text: str) -> None:
    print(f"kontrol: {text}", file=sys.stderr)


def _internal_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print what nobody expected; the interpreter then ends with status 1."""
    traceback.print_exception(kind, error, trace)
    _say(
        f"internal error in version {__version__}. This is a fault of Kontrol: please report it"
        " with the lines above."
    )
