"""`kontrol boot`: find what the pod and its node are, export it, and execute a command."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kontrol.boot import ACCOUNT, PODINFO
from kontrol.cli.address import own_address
from kontrol.cli.command import DONE, Command, check_cloud, refuse, say, seconds
from kontrol.settings import variables as v
from kontrol.settings.resolve import Resolved, resolve
from kontrol_common.text import escaped, escaped_json

if TYPE_CHECKING:  # what a command needs is imported when it runs
    from kontrol.boot.cluster import Sources
    from kontrol.boot.run import Findings
    from kontrol.boot.telegraf import Metrics

_COMMAND = ("supervisord", "-n", "-c", "/etc/supervisor/supervisord.conf")
_TIMEOUT = 60.0  # seconds; kubelet restarts a container whose boot gave up

_STATUSES = """\
  4  the Kubernetes API gave no usable answer in time
  5  the Kubernetes API refused (401, 403, 404), or cannot be trusted
  6  the pod got no address in time
  126, 127  the command cannot be started, or does not exist
  130, 143  ended by SIGINT, SIGTERM while looking
"""


def _boot(options: argparse.Namespace, _others: list[str]) -> int:
    from kontrol.boot.run import ended_by_signals

    resolved = resolve(os.environ, {})
    check_cloud(resolved)
    # Only what boot uses or exports: the daemon checks the rest.
    used = {v.MODE.name, v.HTTP_PORT.name, v.BIND.name, v.LOG.name, v.CLOUD.name, *v.FACTS}
    if status := refuse([mistake for mistake in resolved.mistakes if mistake.name in used]):
        return status
    with ended_by_signals():
        return _run(options, resolved)


def _run(options: argparse.Namespace, resolved: Resolved) -> int:
    import asyncio

    from kontrol.boot.run import NotStarted, become, configure_telegraf, discover
    from kontrol.logs import log_to

    debug = options.debug or "verbose" in resolved.require(v.MODE)
    conf = options.telegraf or resolved.require(v.TELEGRAF_CONF)
    environ = dict(os.environ)
    # Standard output is for the command, or for the table.
    with log_to(sys.stderr, resolved.require(v.LOG), debug=debug):
        found = asyncio.run(discover(_sources(options, resolved)))
        environ |= {name: fact.text for name, fact in found.facts.items()}
        environ[v.TELEGRAF_CONF.name] = str(conf)
        if options.json or options.print:
            print((_as_json if options.json else _as_table)(found), flush=True)
        log = logging.getLogger("kontrol.boot")
        if found.problem is not None:
            log.error("%s", found.problem)
            return found.problem.status
        if options.json or options.print:
            return DONE
        configure_telegraf(conf, found.facts, _metrics(resolved))
        _leave(found, options.telegraf)
        command = _command(options.words)
        who, where = (environ.get(each.name, "unknown") for each in (v.ID, v.IP))
        log.info("this is pod %s at %s: starting %s", who, where, command[0])
    try:
        become(command, environ)
    except NotStarted as error:
        say(str(error))
        return error.status


def _leave(found: "Findings", telegraf: Path | None) -> None:
    """Leave what was found for later commands of this container; a failure is a line in the log."""
    from kontrol.settings import booted
    from kontrol.settings.private import run_folder

    facts: dict[str, tuple[str, str]] = dict(found.facts)
    if telegraf is not None:
        facts[v.TELEGRAF_CONF.name] = (str(telegraf), "--telegraf")
    try:
        booted.leave(os.environ, facts)
    except OSError as error:
        logging.getLogger("kontrol.boot").warning(
            "commands that are started later (kubectl exec) will not know what was found here: "
            "%s cannot be written: %s; mount a folder that this user can write at /tmp, or set "
            "XDG_RUNTIME_DIR to one",
            run_folder(os.environ),
            (error.strerror or str(error)).lower(),
        )


def _command(words: Sequence[str]) -> Sequence[str]:
    """Return the command to execute; some versions of argparse keep the leading `--`."""
    return (words[1:] if words[:1] == ["--"] else words) or _COMMAND


def _sources(options: argparse.Namespace, resolved: Resolved) -> "Sources":
    from kontrol.boot.cloud import firmware
    from kontrol.boot.cluster import Sources
    from kontrol.boot.kubernetes import ServiceAccount
    from kontrol.boot.retry import Retry
    from kontrol.boot.run import system

    return Sources(
        environ=dict(os.environ),
        system=system(os.environ),
        machine=firmware(),
        retry=Retry(options.timeout),
        account=ServiceAccount(options.service_account),
        podinfo=options.podinfo,
        cloud=resolved.require(v.CLOUD),
    )


def _metrics(resolved: Resolved) -> "Metrics | None":
    from kontrol.boot.telegraf import Metrics

    port = resolved.require(v.HTTP_PORT)
    if not port:
        return None
    return Metrics(own_address(resolved), port, tls=resolved.get(v.TLS_CERT) is not None)


def _as_table(found: "Findings") -> str:
    from kontrol.cli.table import Console

    rows = [(name, fact.source, escaped(fact.text)) for name, fact in found.facts.items()]
    return "\n".join(
        Console.of(sys.stdout, os.environ).table(("VARIABLE", "SOURCE", "VALUE"), rows)
    )


def _as_json(found: "Findings") -> str:
    problem = found.problem
    document = {
        "values": [
            {"variable": name, "value": fact.text, "source": fact.source}
            for name, fact in found.facts.items()
        ],
        "problem": problem and {"status": problem.status, "message": str(problem)},
    }
    return escaped_json(document, indent=2)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kontrol boot [OPTION ...] [--] [COMMAND [ARGUMENT ...]]"
    add = parser.add_argument
    add("--print", action="store_true", help="print what would be exported, and start nothing")
    add("--json", action="store_true", help="the same as one JSON document")
    add(
        "--timeout",
        type=seconds,
        default=_TIMEOUT,
        metavar="SECONDS",
        help="time limit for everything together: the Kubernetes API, the pod's address, the node, "
        "the cloud (default: %(default)g)",
    )
    add(
        "--telegraf",
        type=Path,
        metavar="PATH",
        help=f"path of telegraf's configuration (default: ${v.TELEGRAF_CONF.name}, "
        f"else {v.TELEGRAF_CONF.default})",
    )
    add(
        "--podinfo",
        type=Path,
        default=PODINFO,
        metavar="FOLDER",
        help="where a downwardAPI volume is mounted (default: %(default)s)",
    )
    add(
        "--service-account",
        type=Path,
        default=ACCOUNT,
        metavar="FOLDER",
        help="folder with token, ca.crt and namespace (default: %(default)s)",
    )
    # Everything from the first word that is not an option: `docker run IMAGE sh -c ...` has no --.
    command = add(
        "words",
        nargs=argparse.PARSER,
        default=[],
        metavar="COMMAND",
        help=f"the command to execute, and its arguments (default: {' '.join(_COMMAND)})",
    )
    command.required = False


COMMANDS = {
    "boot": Command(
        "kontrol boot --print",
        _boot,
        _configure,
        statuses=_STATUSES,
    ),
}
