"""The command line.

    automaton MANIFEST [-s SOCKET] [-l LOGFILE] [-d]     run a machine
    automaton ctl SOCKET COMMAND...                      send it a command
    automaton check MANIFEST                             validate
    automaton graph MANIFEST                             draw

`ctl`, `check` and `graph` are commands if they come first; name a manifest of such a name as
`./check`.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from automaton.manifest import Manifest, ManifestError
from kontrol_common.text import escaped

DONE = 0
FAILED = 1
USAGE = 2
TIMED_OUT = 4
INTERRUPTED = 130

DEFAULT_SOCKET = "/var/run/automaton.sock"
STATUSES = """
exit status:
  0  done; the machine ended after DIE, SIGINT, SIGTERM, SIGHUP or SIGQUIT
  1  an internal error, or the initial state could not be entered; ctl: the answer is KO
  2  usage, an invalid manifest, a socket that cannot be used or reached
  4  ctl: no answer in time
  130  interrupted from the keyboard (the machine itself ends with 0 then)
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], int]] = {
        "ctl": _ctl,
        "check": _check,
        "graph": _graph,
    }
    command = commands.get(words[0] if words else "")
    try:
        sys.exit(command(words[1:]) if command else _run(words))
    except ManifestError as error:
        _say(str(error))
        sys.exit(USAGE)
    except BrokenPipeError:
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=name,
        description=description,
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(escaped(message, keep="\n"))


class _Version(argparse.Action):
    def __call__(self, *_: object) -> None:
        from importlib.metadata import version  # costs more than everything else here

        _print(f"automaton {version('kontrol-loop')}")
        sys.exit(DONE)


def _run(words: list[str]) -> int:
    parser = _parser(
        "automaton", "Run a finite-state machine of scripts, controlled over a socket."
    )
    parser.add_argument("manifest", type=Path, help="YAML, or Python if it ends in .py")
    parser.add_argument("-s", "--socket", type=Path, default=DEFAULT_SOCKET, help="%(default)s")
    parser.add_argument(
        "-l", "--log", type=Path, default="automaton.log", metavar="LOGFILE", help="%(default)s"
    )
    parser.add_argument(
        "-d", "--debug", action="store_true", help="log everything, including the output of scripts"
    )
    parser.usage = (
        "automaton MANIFEST [-s SOCKET] [-l LOGFILE] [-d]\n       automaton {ctl,check,graph} ..."
    )
    options = parser.parse_args(words)
    manifest = _load(options.manifest)
    from automaton import daemon

    return daemon.run(manifest, options.socket, options.log, debug=options.debug)


def _ctl(words: list[str]) -> int:
    parser = _parser(
        "automaton ctl", "Send a command to a running automaton, and print its answer."
    )
    parser.add_argument("--timeout", type=_seconds, help="seconds to wait (default: no limit)")
    parser.add_argument("socket", help="the path of the socket")
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        help="STATE, STATUS, GOTO state [input], WAIT state [input], SET NAME value, DIE",
    )
    options = parser.parse_args(words)
    if not options.command:
        parser.error("a command is missing: STATE, STATUS, GOTO, WAIT, SET or DIE")
    if options.command[0].startswith("-"):
        parser.error(f"{options.command[0]} after the socket; options come before it")
    from automaton import client

    try:
        answer = client.ask(options.socket, " ".join(options.command), options.timeout)
    except TimeoutError:
        _say(f"automaton ctl: no answer within {options.timeout:g} s")
        return TIMED_OUT
    except client.Unreachable as error:
        _say(f"automaton ctl: {error}")
        return USAGE
    _print(answer)
    return FAILED if answer.startswith("KO ") else DONE


def _check(words: list[str]) -> int:
    parser = _parser("automaton check", "Validate a manifest; print errors and warnings to stderr.")
    parser.add_argument("manifest", type=Path)
    _load(parser.parse_args(words).manifest)
    return DONE


def _graph(words: list[str]) -> int:
    parser = _parser("automaton graph", "Print a diagram of a machine.")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--format", choices=("mermaid", "dot"), default="mermaid")
    parser.add_argument(
        "--socket", help="mark the current state and the path of the automaton that listens there"
    )
    options = parser.parse_args(words)
    manifest = _load(options.manifest)
    import json

    from automaton import client, graph

    trace = graph.Trace()
    if options.socket:
        try:
            trace = graph.Trace.of(json.loads(client.ask(options.socket, "STATUS", 10.0)))
        except TimeoutError:
            _say("automaton graph: no answer within 10 s")
            return USAGE
        except client.Unreachable as error:
            _say(f"automaton graph: {error}")
            return USAGE
        except (ValueError, KeyError, TypeError):
            _say(f"automaton graph: {options.socket}: the process there is not an automaton")
            return USAGE
    draw = graph.dot if options.format == "dot" else graph.mermaid
    _print(draw(manifest, trace))
    return DONE


def _seconds(text: str) -> float:
    # As kontrol.ensemble.numbers: float() would accept 25_0, nan and digits of other scripts.
    value = float(text) if re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,30})?", text) else 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a number of seconds above 0, in digits 0-9 as 25 or 0.5"
        )
    return value


def _load(path: Path) -> Manifest:
    from automaton.load import load

    manifest, warnings = load(path)
    for warning in warnings:
        _say(warning.render(str(path)))
    return manifest


def _print(text: str) -> None:
    """Print as is; on a terminal, with control characters escaped."""
    if sys.stdout.isatty():
        text = escaped(text, keep="\t\n")
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.buffer.write(escaped(text, keep="\t\n").encode("utf-8") + b"\n")
    sys.stderr.flush()
