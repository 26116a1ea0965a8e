"""`kontrol invoke SELECTOR... -- COMMAND`: run a command on pods.

Its words are split at the first `--`: what follows is the command, whatever it looks like.
"""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from kontrol.cli.command import (
    DONE,
    INTERRUPTED,
    NOTHING,
    STATUSES,
    UNANSWERED,
    USAGE,
    Command,
    count,
    say,
    seconds,
)
from kontrol.cli.contents import INVOKE
from kontrol_common.openssl import without_openssl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kontrol.cli.invoke.fanout import FanOut, Result, Target
    from kontrol.cli.invoke.output import JsonReport, TextReport
    from kontrol.cli.invoke.targets import Place, Record, Selection

FAILED = 5
_MOST = 256  # pods at a time
_DESCRIPTORS = 2  # of one pod: a connection, and the look-up of a name
_OTHERS = 50  # descriptors that are not of connections

_EXAMPLE = "kontrol invoke --role redis -- redis-cli ping"
_OWN = f"""\
  {UNANSWERED}  no master listed the pods
  {FAILED}  some pods failed: the end of the output names them, with the reason
  {INTERRUPTED}  interrupted from the keyboard or by a signal; the commands were ended
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the words before `--`."""
    made = argparse.ArgumentParser(
        prog=f"kontrol {INVOKE.name}",
        usage=f"kontrol {INVOKE.name} [options] [SELECTOR ...] -- COMMAND [ARGUMENT ...]",
        description=INVOKE.description,
        epilog=f"example:\n  {_EXAMPLE}\n\n{STATUSES}{_OWN}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "selectors",
        nargs="*",
        metavar="SELECTOR",
        help="a pod's id, key or number (as '#7'), or a glob of ids; with several, all that match",
    )
    made.add_argument("--all", action="store_true", help="every pod")
    made.add_argument(
        "--role", action="append", default=[], metavar="ROLE", help="only pods of this role"
    )
    made.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="only pods with this value in their record, as payload.state=READY",
    )
    made.add_argument(
        "--shell", action="store_true", help="run COMMAND, one word, by /bin/sh on the pod"
    )
    made.add_argument(
        "--parallel",
        type=count(1, _MOST),
        default=100,
        metavar="N",
        help=f"how many pods at a time, up to {_MOST} (default: %(default)s)",
    )
    made.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="how long the command may take on each pod (default: no limit)",
    )
    made.add_argument(
        "--stdin",
        metavar="FILE",
        help="standard input for the command on each pod: a file, or - for this command's own",
    )
    made.add_argument(
        "--max-failures",
        type=count(1, 1_000_000),
        metavar="N",
        help="after N pods failed, do not begin on any other (default: no limit)",
    )
    made.add_argument(
        "--liveness",
        type=seconds,
        metavar="SECONDS",
        help="give a pod up that answers nothing for so long while its command runs, at least 1 "
        "(default: 10 to 15)",
    )
    made.add_argument(
        "--best-effort",
        action="store_true",
        help="in a callback: if pods fail, have it run again in 5 s with a note, and exit with 0",
    )
    made.add_argument(
        "--json", action="store_true", help="print JSON: one object per line for each event"
    )
    made.add_argument(
        "--master",
        metavar="TIER",
        help="the masters that list the pods, as host[:port] (default: KONTROL_MASTER, else the "
        "master of this environment, the tier that its agent reports to, or this host; within a "
        "callback, its PODS_FILE)",
    )
    return made


def _run(_options: argparse.Namespace, others: list[str]) -> int:
    cut = others.index("--") if "--" in others else len(others)
    before, words = others[:cut], others[cut + 1 :]
    made = parser()
    options = made.parse_intermixed_args(before)
    if not words or not words[0]:
        made.error("expected a command after --, as in: -- redis-cli ping")
    if options.shell and len(words) > 1:
        made.error(f"--shell takes one word, and there are {len(words)}: quote the command")
    if not (options.all or options.selectors or options.role or options.where):
        made.error("expected a selector, --role or --where, or --all for every pod")
    if options.all and options.selectors:
        made.error("--all means every pod: remove the selectors")
    if options.liveness is not None and options.liveness < 1:
        made.error(f"--liveness {options.liveness:g}: expected at least 1 second")
    if options.best_effort and not all(
        os.environ.get(name) for name in ("AGAIN_FILE", "NOTE_FILE")
    ):
        made.error(
            "--best-effort is for callbacks: it writes to $AGAIN_FILE and $NOTE_FILE, which are"
            " not set here"
        )
    return _invoke(options, words, made)


def _invoke(options: argparse.Namespace, words: list[str], made: argparse.ArgumentParser) -> int:
    without_openssl()
    import asyncio

    from kontrol.cli.invoke import input as input_
    from kontrol.cli.invoke.targets import (
        BadSelection,
        NoMaster,
        NoMatch,
        Selection,
        condition,
        find,
    )
    from kontrol.errors import leaves
    from kontrol.rpc.security.keys import KeysError
    from kontrol.settings import SettingsError, booted

    try:
        where = tuple(condition(text) for text in options.where)
        place = find(os.environ, options.master, booted.read(os.environ))
    except BadSelection as error:
        made.error(f"--where {error}")
    except (SettingsError, KeysError) as error:
        say(str(error))
        return USAGE
    selection = Selection(tuple(options.selectors), tuple(options.role), where)
    request: dict[str, object] = {"cmd": words[0]} if options.shell else {"argv": words}
    if options.stdin is not None:
        try:
            request |= input_.member(input_.read(options.stdin, sys.stdin.buffer))
        except input_.BadInput as error:
            made.error(f"--stdin {error}")
    try:
        return asyncio.run(_fan_out(options, place, selection, {**request, **place.fence}))
    except NoMatch as error:
        say(str(error))
        return NOTHING
    except NoMaster as error:
        say(str(error))
        return UNANSWERED
    except ExceptionGroup as group:  # a reader that went away ends the command as it ends others
        for leaf in leaves(group):
            if isinstance(leaf, BrokenPipeError):
                raise leaf from None
        raise


async def _fan_out(
    options: argparse.Namespace,
    place: "Place",
    selection: "Selection",
    request: "dict[str, object]",
) -> int:
    from kontrol.cli.invoke.fanout import FanOut
    from kontrol.cli.invoke.output import JsonReport, Printer, TextReport, is_terminal

    pods = await place.pods(*selection.fields)
    targets = [_target(pod, place.tier.port) for pod in selection.choose(pods)]
    out, err = sys.stdout.buffer, sys.stderr.buffer
    tty_out, tty_err = is_terminal(out), is_terminal(err)
    printer = Printer(out, err, tty_out=tty_out, tty_err=tty_err)
    report: JsonReport | TextReport
    if options.json:
        report = JsonReport(printer)
    else:
        report = TextReport(printer, targets, colour=not os.environ.get("NO_COLOR"))
    fan = FanOut(
        request,
        connect=lambda target: place.asker.pod(target.host, target.port),
        report=report,
        keyed=place.asker.keys is not None,
        parallel=_affordable(options.parallel),
        timeout=options.timeout,
        max_failures=options.max_failures,
        liveness=options.liveness,
    )
    return await _watched(fan, report, targets, best_effort=options.best_effort)


def _affordable(parallel: int) -> int:
    """Raise the limit of descriptors; return for how many pods at a time it is enough."""
    import resource

    needed = _OTHERS + _DESCRIPTORS * parallel
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return parallel
    soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(parallel, (soft - _OTHERS) // _DESCRIPTORS))


async def _watched(
    fan: "FanOut",
    report: "JsonReport | TextReport",
    targets: "Sequence[Target]",
    *,
    best_effort: bool,
) -> int:
    """Run, with signals: the first one ends the commands, a second one exits immediately."""
    import asyncio
    import signal

    stopped = False

    def stop(number: signal.Signals) -> None:
        nonlocal stopped
        if (
            stopped and number != signal.SIGHUP
        ):  # which comes together with others when a terminal closes
            os._exit(INTERRUPTED)
        stopped = True
        fan.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        loop.add_signal_handler(number, stop, number)
    await report.begin()
    results: Sequence[Result] = await fan.run(targets)
    await report.finish(results)
    if stopped:
        return INTERRUPTED
    if all(result.ok for result in results):
        return DONE
    return _leave_to_the_next_run(results) if best_effort else FAILED


def _leave_to_the_next_run(results: "Sequence[Result]") -> int:
    """Have the callback run again for what failed; return the exit status."""
    from kontrol.cli.invoke.input import ask_again

    try:
        ask_again(results, os.environ)
    except OSError as error:
        say(f"--best-effort: the failures cannot be noted: {error}")
        return FAILED
    say("the failures are left to the next run of the callback (--best-effort)")
    return DONE


def _target(pod: "Record", port: int) -> "Target":
    """Return where a pod listens; an agent of the original Kontrol does on the tier's `port`.

    Its record has no port, like that of an agent that accepts no commands, but also no nonce.
    """
    from kontrol.cli.invoke.fanout import Target

    own = pod.get("port")
    original = own is None and pod.get("nonce") == ""
    if not (isinstance(own, int) and 0 < own < 65536):
        own = port if original else 0
    return Target(
        name=str(pod.get("id")),
        key=str(pod.get("key")),
        host=str(pod.get("ip")),
        port=own,
        original=original,
    )


COMMANDS = {
    INVOKE.name: Command(_EXAMPLE, _run, statuses=_OWN, passes=True, parser=parser),
}
