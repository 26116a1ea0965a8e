"""The commands that need no master: `config`, `leave` and `demo`."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kontrol.cli.command import (
    DONE,
    REFUSED,
    UNANSWERED,
    Command,
    check_cloud,
    complain,
    refuse,
    say,
    seconds,
)
from kontrol.settings import Variable, booted, examine, host_facts
from kontrol.settings import variables as v
from kontrol.settings.resolve import Resolved, resolve
from kontrol_common.text import escaped

if TYPE_CHECKING:
    from kontrol.agent.control import Who

_WHERE = (v.CONTROL.name, v.PORT.name)  # where the agent's control socket is
_MEANT = (v.ID.name, v.POD_KEY.name, v.IP.name)  # which pod is meant


def _config(options: argparse.Namespace, _others: list[str]) -> int:
    from kontrol.settings.resolve import as_json, as_table

    resolved = examine(os.environ, booted=booted.read(os.environ))
    check_cloud(resolved)
    print((as_json if options.json else as_table)(resolved), flush=True)
    return complain(resolved)


def _leave(options: argparse.Namespace, _others: list[str]) -> int:
    from kontrol.agent.control import ControlError, ask_who, default_path, leave

    resolved = resolve(os.environ, host_facts(os.environ), booted.read(os.environ))
    given: Path | None = options.socket
    # Mistakes in other settings do not matter here: an application's container has few of them.
    needed = _MEANT if given else (*_MEANT, *_WHERE)
    wrong = [mistake for mistake in resolved.mistakes if mistake.name in needed]
    if wrong:
        return refuse(wrong)
    chosen = given or resolved.get(v.CONTROL)
    path = chosen or default_path(resolved.require(v.PORT), os.environ)
    try:
        who = ask_who(path, options.timeout)
        if why := _not_meant(who, options.pod, resolved, by_path=chosen is not None):
            say(
                f"the agent at {path} reports {who}, {why}; nothing was done. {_anyway(who, given)}"
            )
            return REFUSED
        tiers = ", ".join(who.tiers)
        if not options.yes and sys.stdin.isatty():
            question = escaped(f"Deregister {who} from {tiers}? [y/N] ")
            print(question, end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                say("nothing was done")
                return REFUSED
        left = leave(path, who, options.timeout)
    except ControlError as error:
        say(str(error))
        return UNANSWERED
    print(escaped(f"{who} {'left' if left else 'had already left'} {tiers}"))
    return DONE


def _not_meant(who: "Who", pod: str | None, resolved: Resolved, *, by_path: bool) -> str:
    """Say why this is not the pod that is meant, empty if it is.

    POD names it, or else the environment. A socket that is given means the pod of the agent that
    listens there, unless the environment names another pod.
    """
    from kontrol.ensemble.pod import key_of

    if pod is not None:
        return "" if pod in (who.id, who.key) else f"not {pod}"
    ident, key, ip = (resolved.get(each) for each in (v.ID, v.POD_KEY, v.IP))
    given = {each.name for each in (v.ID, v.POD_KEY, v.IP) if _given(resolved, each)}
    if v.POD_KEY.name in given and key != who.key:
        return f"but this environment has key {key} ({v.POD_KEY.name})"
    if v.IP.name in given and key is None and ip and key_of(ip) != who.key:
        return f"but this environment has address {ip} ({v.IP.name})"
    if ident != who.id and (v.ID.name in given or not by_path):
        source = resolved.entries[v.ID.name].source if v.ID.name in resolved.entries else ""
        return f"but this environment is of pod {ident} ({v.ID.name}, {source})"
    return ""


def _anyway(who: "Who", chosen: Path | None) -> str:
    """Return the command that deregisters the pod that was found, at a socket if one was given."""
    socket = "" if chosen is None else f" --socket {shlex.quote(str(chosen))}"
    return f"To deregister it anyway: `kontrol leave {shlex.quote(who.id)}{socket}`"


def _given(resolved: Resolved, variable: Variable[Any]) -> bool:
    """Return whether a value was set, and is not just what this host happens to have."""
    entry = resolved.entries.get(variable.name)
    return entry is not None and entry.source not in ("found", "default")


def _demo(_options: argparse.Namespace, others: list[str]) -> int:
    from kontrol.demo import main as demo

    return demo(others)


def _demo_parser() -> argparse.ArgumentParser:
    from kontrol.demo import parser

    return parser()


def _configure_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _configure_leave(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pod",
        nargs="?",
        metavar="POD",
        help="id or key of the pod to deregister; refused if the agent reports another one "
        "(default: the pod of this environment, or with --socket the one that listens there)",
    )
    parser.add_argument(
        "-y", "--yes", action="store_true", help="do not ask for confirmation on a terminal"
    )
    parser.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help=f"the agent's control socket (default: from {' and '.join(_WHERE)})",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="how long to wait for the agent (default: %(default)g)",
    )


COMMANDS = {
    "config": Command(
        "KONTROL_MODE=debug kontrol config",
        _config,
        _configure_config,
    ),
    "leave": Command(
        "kontrol leave redis-0 --yes",
        _leave,
        _configure_leave,
        statuses="  4  no agent answered, or a tier did not acknowledge the deregistration\n"
        "  5  nothing was done: the agent reports another pod, or you answered no\n",
    ),
    "demo": Command(
        "kontrol demo",
        _demo,
        passes=True,
        parser=_demo_parser,
    ),
}
