"""The commands that look at the ensemble through a master, and steer it.

Each asks a master over REST and lays out what it says; `--json` prints the document itself. What
a command needs is imported when it runs.
"""

import argparse
from typing import TYPE_CHECKING

from kontrol.cli import completion
from kontrol.cli.command import DONE, NOTHING, UNANSWERED, USAGE, Command, count, say
from kontrol.cli.operate import archive as operate_archive
from kontrol.cli.operate.asking import (
    ASKING,
    WRONG,
    Work,
    asking,
    configure,
    items,
    show,
    show_json,
)

if TYPE_CHECKING:
    from kontrol.cli.operate.document import UntrustedJson
    from kontrol.cli.rest import Rest
    from kontrol.cli.table import Console
    from kontrol.ensemble.canonical import JSON

_LEADER = 10.0  # seconds that a master waits for its leader to do what was asked
_DOING = """\
  4  no master answered, or the leader has not yet done it
  5  refused: token missing or insufficient, or refused by the leader
"""


def _status(options: argparse.Namespace, rest: "Rest", paper: "Console") -> int:
    from kontrol.cli.operate.document import UntrustedJson
    from kontrol.cli.operate.status import problems, screen

    answer = rest.get("/v1/status")
    status = UntrustedJson.of(answer.document)
    if options.json:
        show_json(answer.document)
    else:
        show(screen(status, str(answer.endpoint), paper))
    for failure in answer.silent:
        say(f"another master did not answer: {failure}")
    return WRONG if problems(status) else DONE


def _pods(options: argparse.Namespace, rest: "Rest", paper: "Console") -> int:
    from kontrol.cli.operate.document import UntrustedJson
    from kontrol.cli.operate.pods import matching, one, table

    if options.watch:
        if options.pod is not None:
            say(f"--watch shows every pod, or those of a --role: leave {options.pod!r} out")
            return USAGE
        from kontrol.cli.operate.watch import follow

        follow(rest, options.role, as_json=options.json)
    if options.pod is not None:
        pod = _one_pod(rest, options.pod)
        if pod is None:
            say(f"no pod has the id, key or number {options.pod!r}; `kontrol pods` lists them all")
            return NOTHING
        if options.json:
            show_json(pod)
        else:
            show(one(UntrustedJson.of(pod), paper))
        return DONE
    document = rest.get("/v1/pods").document
    everyone = items(document, "pods")
    pods = matching(everyone, options.role)
    if options.json:
        show_json({**document, "pods": pods})
    elif pods:
        show(table([UntrustedJson.of(pod) for pod in pods], paper))
    if not pods:
        of = f" of role {' or '.join(options.role)}" if options.role else ""
        say(f"no pods{of}" + (f" among {len(everyone)}" if everyone else ""))
    return NOTHING if options.role and not pods else DONE


def _one_pod(rest: "Rest", name: str) -> "JSON":
    """Return the pod with this key, id or number, None if there is none."""
    from urllib.parse import quote

    from kontrol.cli.operate.pods import named
    from kontrol.cli.rest import RestError

    if not name.startswith("#"):
        try:
            document = rest.get(f"/v1/pods/{quote(name, safe='')}").document
            return document.get("pod", document)
        except RestError as error:
            if error.exit_status != NOTHING:
                raise
    return named(items(rest.get("/v1/pods").document, "pods"), name)


def _state(options: argparse.Namespace, rest: "Rest", _paper: "Console") -> int:
    document = rest.get("/v1/state").document
    if options.json:
        show_json(document)
        return DONE
    if not document.get("run"):
        last = document.get("acknowledged")
        why = "no run was acknowledged yet: there is no state"
        if isinstance(last, int) and last:
            why = (
                f"run {last} was acknowledged, but no run has printed a state yet: what the "
                "callback writes to its standard output, as JSON, becomes the state"
            )
        say(why)
    show_json(document.get("state"))
    return DONE


def _runs(options: argparse.Namespace, rest: "Rest", paper: "Console") -> int:
    from kontrol.cli.operate.document import UntrustedJson
    from kontrol.cli.operate.runs import ledger

    document = rest.get("/v1/runs", limit=options.limit).document
    entries = [UntrustedJson.of(entry) for entry in items(document, "runs")]
    if options.json:
        show_json(document)
    elif entries:
        show(ledger(entries, paper))
    else:
        say("nothing ran yet; `kontrol explain` says why")
    return DONE


def _explain(options: argparse.Namespace, rest: "Rest", paper: "Console") -> int:
    from kontrol.cli.operate.document import UntrustedJson
    from kontrol.cli.operate.runs import explain, now

    if options.run is not None:
        document = rest.get(f"/v1/runs/{options.run}").document
        if options.json:
            show_json(document)
        else:
            show(explain(_entry(document), paper))
        return DONE
    status = rest.get("/v1/status").document
    latest = items(rest.get("/v1/runs", limit=1).document, "runs")
    number = UntrustedJson.of(latest[0]).text("run") if latest else ""
    last = rest.get(f"/v1/runs/{number}").document if number else None
    if options.json:
        show_json({"run": last, "status": status})
        return DONE
    lines = paper.wrap(f"Now: {now(UntrustedJson.of(status))}.")
    lines += ["", *explain(_entry(last), paper)] if last else ["Nothing ran yet."]
    show(lines)
    return DONE


def _entry(document: "dict[str, JSON]") -> "UntrustedJson":
    from kontrol.cli.operate.document import UntrustedJson

    inner = document.get("run")
    return UntrustedJson.of(inner if isinstance(inner, dict) else document)


def _ask(path: str) -> Work:
    """Make what asks the leader to do something."""

    def work(options: argparse.Namespace, rest: "Rest", _paper: "Console") -> int:
        from kontrol.cli.operate.document import UntrustedJson

        body: dict[str, JSON] = {
            name: getattr(options, name) for name in ("run", "pod") if name in options
        }
        answer = rest.post(path, body, patience=_LEADER)
        if options.json:
            show_json(answer.document)
        told = UntrustedJson.of(answer.document)
        done = told.true("done")
        if not options.json:
            text = told.text("message", "done" if done else "the leader has not answered yet")
            print(text) if done else say(text)
        return DONE if done else UNANSWERED

    return work


_number = count(1, 10**18, "expected the number of a run, from 1")
_limit = count(1, 200, "expected 1 to 200, which is all that is kept")


def _configure_pods(parser: argparse.ArgumentParser) -> None:
    configure(parser)
    parser.add_argument("pod", nargs="?", metavar="POD", help="one pod: its id, key, or number")
    parser.add_argument(
        "--role", action="append", default=[], help="only pods of this role; may be repeated"
    )
    parser.add_argument(
        "--watch", action="store_true", help="go on, and show every change; Ctrl-C ends it"
    )


def _configure_runs(parser: argparse.ArgumentParser) -> None:
    configure(parser)
    parser.add_argument(
        "--limit", type=_limit, default=20, metavar="N", help="how many (default: %(default)d)"
    )


def _configure_explain(parser: argparse.ArgumentParser) -> None:
    configure(parser)
    parser.add_argument(
        "run",
        nargs="?",
        type=_number,
        metavar="RUN",
        help="its number (default: the last one, and why nothing runs now)",
    )


def _configure_rollback(parser: argparse.ArgumentParser) -> None:
    configure(parser)
    parser.add_argument("run", type=_number, metavar="RUN", help="whose state to put back")


def _configure_forget(parser: argparse.ArgumentParser) -> None:
    configure(parser)
    parser.add_argument("pod", metavar="POD", help="its key, its id, or # and its number")


COMMANDS: tuple[Command, ...] = (
    Command(
        "status",
        "show the state of the tier, and how to fix what is wrong",
        "kontrol status --master masters",
        asking(_status),
        configure,
        statuses=f"{ASKING}  6  a master answered, and something is wrong\n",
    ),
    Command(
        "pods",
        "list the pods, or show one; --watch shows every change",
        "kontrol pods --role cache --watch",
        asking(_pods),
        _configure_pods,
        statuses=f"{ASKING}  130  --watch was ended by Ctrl-C\n",
    ),
    Command(
        "state",
        "print the state that the last acknowledged run left, as JSON",
        "kontrol state",
        asking(_state),
        configure,
        statuses=ASKING,
    ),
    Command(
        "runs",
        "list the last runs of the callback",
        "kontrol runs --limit 50",
        asking(_runs),
        _configure_runs,
        statuses=ASKING,
    ),
    Command(
        "explain",
        "tell why a run ran and how it ended, or why nothing runs now",
        "kontrol explain 12",
        asking(_explain),
        _configure_explain,
        statuses=ASKING,
    ),
    Command(
        "run-now",
        "have the leader run the callback now",
        "kontrol run-now",
        asking(_ask("/v1/runs")),
        configure,
        statuses=_DOING,
    ),
    Command(
        "release",
        "release the brake: treat the missing pods as gone and run the callback",
        "kontrol release",
        asking(_ask("/v1/release")),
        configure,
        statuses=_DOING,
    ),
    Command(
        "rollback",
        "put back the state that a run left, fenced and recorded",
        "kontrol rollback 12",
        asking(_ask("/v1/rollback")),
        _configure_rollback,
        statuses=_DOING,
    ),
    Command(
        "forget",
        "clear a pod's seat: delete its record, and take whoever reports it next",
        "kontrol forget redis-7",
        asking(_ask("/v1/forget")),
        _configure_forget,
        statuses=_DOING,
    ),
    *operate_archive.COMMANDS,
    *completion.COMMANDS,
)
