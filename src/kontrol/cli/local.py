"""The commands that need no master: they look at this machine alone."""

import argparse
import os
from pathlib import Path

from kontrol.cli.command import DONE, UNANSWERED, Command, complain, refuse, say, seconds
from kontrol.settings import booted, examine
from kontrol.settings import variables as v
from kontrol.settings.resolve import resolve

_LEAVE = (v.CONTROL.name, v.PORT.name)  # what tells where an agent is asked to leave


def _config(options: argparse.Namespace, _others: list[str]) -> int:
    from kontrol.settings.report import as_json, as_table

    resolved = examine(os.environ, booted=booted.read(os.environ))
    print((as_json if options.json else as_table)(resolved), flush=True)
    return complain(resolved)


def _leave(options: argparse.Namespace, _others: list[str]) -> int:
    from kontrol.agent.control import ControlError, default_path, leave

    path = options.socket
    if path is None:
        resolved = resolve(os.environ, {})
        # Of all settings only these two: an application's container need know no more.
        wrong = [mistake for mistake in resolved.mistakes if mistake.name in _LEAVE]
        if wrong:
            return refuse(wrong)
        path = resolved.get(v.CONTROL) or default_path(resolved.require(v.PORT), os.environ)
    try:
        leave(path, options.timeout)
    except ControlError as error:
        say(str(error))
        return UNANSWERED
    return DONE


def _demo(_options: argparse.Namespace, others: list[str]) -> int:
    from kontrol.demo import main as demo

    return demo(others)


def _demo_parser() -> argparse.ArgumentParser:
    from kontrol.demo import parser

    return parser()


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
        type=seconds,
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
        "show a whole ensemble at work on this machine, in half a minute",
        "kontrol demo",
        _demo,
        passes=True,
        parser=_demo_parser,
    ),
)
