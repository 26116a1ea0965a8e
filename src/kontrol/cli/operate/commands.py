"""The commands that show a tier through one of its masters, and those that make its leader act.

Each sends a request over REST and formats the answer; `--json` prints the answer itself. What a
command needs is imported when it runs.
"""

import argparse
from typing import TYPE_CHECKING

from kontrol.cli.command import DONE, NOTHING, UNANSWERED, USAGE, Command, count, say
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

_LEADER = 10.0  # seconds that a master waits for its leader's answer
_DOING = """\
  4  no master answered, or the leader has not answered yet
  5  refused: token missing or insufficient, or refused by the leader
"""


def _status(options: argparse.Namespace, rest: "Rest", console: "Console") -> int:
    from kontrol.cli.operate.document import UntrustedJson
    from kontrol.cli.operate.status import problems, screen

    answer = rest.get("/v1/status")
    status = UntrustedJson.of(answer.document)
    if options.json:
        show_json(answer.document)
    else:
        show(screen(status, str(answer.endpoint), console))
    for failure in answer.silent:
        say(f"another master did not answer: {failure}")
    return WRONG if problems(status) else DONE


def _pods(options: argparse.Namespace, rest: "Rest", console: "Console") -> int:
    from kontrol.cli.operate.document import UntrustedJson
    from kontrol.cli.operate.pods import follow, matching, one, table

    if options.watch:
        if options.pod is not None:
            say(f"--watch shows all pods, or those of a --role: remove {options.pod!r}")
            return USAGE
        follow(rest, options.role, as_json=options.json, reach=console.reach)
    if options.pod is not None:
        pod = _one_pod(rest, options.pod)
        if pod is None:
            hint = console.remedy("`kontrol pods` lists all pods")
            say(f"no pod has the id, key or number {options.pod!r}; {hint}")
            return NOTHING
        if options.json:
            show_json(pod)
        else:
            show(one(UntrustedJson.of(pod), console))
        return DONE
    document = rest.get("/v1/pods").document
    everyone = items(document, "pods")
    pods = matching(everyone, options.role)
    if options.json:
        show_json({**document, "pods": pods})
    elif pods:
        show(table([UntrustedJson.of(pod) for pod in pods], console))
    if not pods:
        of = f" of role {' or '.join(options.role)}" if options.role else ""
        say(f"no pods{of}" + (f" among {len(everyone)}" if everyone else ""))
    return NOTHING if options.role and not pods else DONE


def _one_pod(rest: "Rest", name: str) -> "JSON":
    """Return the pod with this key, id or number, or None."""
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


def _state(options: argparse.Namespace, rest: "Rest", _console: "Console") -> int:
    document = rest.get("/v1/state").document
    if options.json:
        show_json(document)
        return DONE
    if not document.get("run"):
        last = document.get("acknowledged")
        why = "no state: no run has been acknowledged yet"
        if isinstance(last, int) and last:
            why = (
                f"no state: run {last} was acknowledged, but no run has printed one yet. The "
                "callback sets it by printing JSON to its standard output"
            )
        say(why)
    show_json(document.get("state"))
    return DONE


def _runs(options: argparse.Namespace, rest: "Rest", console: "Console") -> int:
    from kontrol.cli.operate.document import UntrustedJson
    from kontrol.cli.operate.runs import ledger

    document = rest.get("/v1/runs", limit=options.limit).document
    entries = [UntrustedJson.of(entry) for entry in items(document, "runs")]
    if options.json:
        show_json(document)
    elif entries:
        show(ledger(entries, console))
    else:
        say(console.remedy("no run yet; `kontrol explain` shows why"))
    return DONE


def _explain(options: argparse.Namespace, rest: "Rest", console: "Console") -> int:
    from kontrol.cli.operate.document import UntrustedJson
    from kontrol.cli.operate.runs import explain, now

    if options.run is not None:
        document = rest.get(f"/v1/runs/{options.run}").document
        if options.json:
            show_json(document)
        else:
            show(explain(_entry(document), console))
        return DONE
    status = rest.get("/v1/status").document
    latest = items(rest.get("/v1/runs", limit=1).document, "runs")
    number = UntrustedJson.of(latest[0]).text("run") if latest else ""
    last = rest.get(f"/v1/runs/{number}").document if number else None
    if options.json:
        show_json({"run": last, "status": status})
        return DONE
    lines = console.wrap(f"Now: {console.remedy(now(UntrustedJson.of(status)))}.")
    lines += ["", *explain(_entry(last), console)] if last else ["No run yet."]
    show(lines)
    return DONE


def _entry(document: "dict[str, JSON]") -> "UntrustedJson":
    from kontrol.cli.operate.document import UntrustedJson

    inner = document.get("run")
    return UntrustedJson.of(inner if isinstance(inner, dict) else document)


def _request(path: str) -> Work:
    """Make the work of a command that has the leader do something."""

    def work(options: argparse.Namespace, rest: "Rest", console: "Console") -> int:
        from kontrol.cli.operate.document import UntrustedJson

        body: dict[str, JSON] = {
            name: getattr(options, name) for name in ("run", "pod") if name in options
        }
        answer = rest.post(path, body, wait=_LEADER)
        if options.json:
            show_json(answer.document)
        reply = UntrustedJson.of(answer.document)
        done = reply.true("done")
        if not options.json:
            text = reply.text("message", "done" if done else "the leader has not answered yet")
            text = console.remedy(text)
            print(text) if done else say(text)
        return DONE if done else UNANSWERED

    return work


_number = count(1, 10**18, "expected the number of a run, 1 or higher")
_limit = count(1, 200, "expected 1 to 200: the ledger keeps the last 200 runs")


def _configure_pods(parser: argparse.ArgumentParser) -> None:
    configure(parser)
    parser.add_argument(
        "pod", nargs="?", metavar="POD", help="show one pod, by its id, key or number (as '#7')"
    )
    parser.add_argument(
        "--role", action="append", default=[], help="show only pods of this role; may be repeated"
    )
    parser.add_argument(
        "--watch", action="store_true", help="keep running and show every change, until Ctrl-C"
    )


def _configure_runs(parser: argparse.ArgumentParser) -> None:
    configure(parser)
    parser.add_argument(
        "--limit",
        type=_limit,
        default=20,
        metavar="N",
        help="how many to list (default: %(default)d)",
    )


def _configure_explain(parser: argparse.ArgumentParser) -> None:
    configure(parser)
    parser.add_argument(
        "run",
        nargs="?",
        type=_number,
        metavar="RUN",
        help="the number of a run (default: the last one, and what happens now)",
    )


def _configure_rollback(parser: argparse.ArgumentParser) -> None:
    configure(parser)
    parser.add_argument("run", type=_number, metavar="RUN", help="restore the state as of this run")


def _configure_forget(parser: argparse.ArgumentParser) -> None:
    configure(parser)
    parser.add_argument("pod", metavar="POD", help="the key, id or number (as '#7') of the pod")


COMMANDS = {
    "status": Command(
        "kontrol status --master masters",
        asking(_status),
        configure,
        statuses=f"{ASKING}  6  a master answered, and there are problems, or a note\n",
    ),
    "pods": Command(
        "kontrol pods --role cache --watch",
        asking(_pods),
        _configure_pods,
        statuses=f"{ASKING}  130  --watch was ended by Ctrl-C\n",
    ),
    "state": Command(
        "kontrol state",
        asking(_state),
        configure,
        statuses=ASKING,
    ),
    "runs": Command(
        "kontrol runs --limit 50",
        asking(_runs),
        _configure_runs,
        statuses=ASKING,
    ),
    "explain": Command(
        "kontrol explain 12",
        asking(_explain),
        _configure_explain,
        statuses=ASKING,
    ),
    "run-now": Command(
        "kontrol run-now",
        asking(_request("/v1/runs")),
        configure,
        statuses=_DOING,
    ),
    "release": Command(
        "kontrol release",
        asking(_request("/v1/release")),
        configure,
        statuses=_DOING,
    ),
    "rollback": Command(
        "kontrol rollback 12",
        asking(_request("/v1/rollback")),
        _configure_rollback,
        statuses=_DOING,
    ),
    "forget": Command(
        "kontrol forget redis-7",
        asking(_request("/v1/forget")),
        _configure_forget,
        statuses=_DOING,
    ),
}
