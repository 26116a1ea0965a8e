"""`kontrol status`: the state of a tier on one screen, whose first line says if all is well."""

from collections.abc import Sequence

from kontrol.cli.operate import runs
from kontrol.cli.operate.document import UntrustedJson, counted, lasting
from kontrol.cli.table import Cell, Console


def problems(status: UntrustedJson) -> list[tuple[str, str]]:
    """Return each problem and its fix: as the master names them, else as the status shows.

    Masters of the version before call the fix `mend`.
    """
    found = [
        (each.text("what", "?"), each.text("fix", each.text("mend")))
        for each in status.objects("problems")
    ]
    if found:
        return found
    if not status.object("etcd").true("ok"):
        found.append(("etcd does not answer this master", "check etcd, and see the master's log"))
    if not status.object("leader"):
        found.append(("no master leads", "see the masters' logs"))
    return found


def screen(status: UntrustedJson, asked: str, console: Console) -> list[str]:
    """Return the lines of the screen; `asked` is the URL of the master that answered."""
    lines = _verdict(status, console)
    lines += ["", *console.fields(_fields(status, asked, console))]
    entries = status.objects("runs")
    if entries:
        rows = runs.rows(entries, status.time("time"))
        lines += ["", *console.table(runs.HEAD, rows, runs.NUMBERS)]
    return lines


def _verdict(status: UntrustedJson, console: Console) -> list[str]:
    wrong = [(what, console.remedy(fix)) for what, fix in problems(status)]
    if not wrong:
        ensemble = status.object("ensemble")
        [line, *more] = console.wrap(
            f"All is well: {counted(ensemble.count('pods'), 'pod')}; {_doing(status)}."
        )
        return [console.paint(text, "good") for text in (line, *more)]
    number = len(wrong)
    head = "1 thing is wrong:" if number == 1 else f"{number} things are wrong:"
    lines = [console.paint(head, "bad")]
    for what, fix in wrong:
        lines += [console.paint(line, "bad") for line in console.wrap(f"- {what}", "  ")]
        lines += console.wrap(f"  {fix}", "  ") if fix else []
    return lines


def _doing(status: UntrustedJson) -> str:
    """Return in few words what the leader does, for the first line."""
    running, plan = status.object("running"), status.object("plan")
    if runs.under_way(status):
        return f"run {running.text('run')} is under way{runs.lasted(running, status)}"
    seconds = plan.number("seconds") or 0
    return {
        "idle": f"nothing is due{runs.timed(plan)}",
        "wait": f"a run is due in {lasting(seconds)}" if seconds > 0 else "a run is due now",
        "run": "a run is starting",
    }.get(plan.text("what"), "this master does not know what is due")


def _fields(
    status: UntrustedJson, asked: str, console: Console
) -> Sequence[tuple[str, str | Cell]]:
    ensemble, applied = status.object("ensemble"), status.object("applied")
    pairs: list[tuple[str, str | Cell]] = [
        ("tier", f"{status.text('namespace', '?')}/{status.text('app', '?')}"),
        (
            "asked",
            f"{status.text('master', '?')} at {asked}, version {status.text('version', '?')}",
        ),
        ("leader", _leader(status)),
        ("masters", _masters(status)),
        ("etcd", _etcd(status.object("etcd"))),
        ("pods", _pods(ensemble)),
        ("digest", ensemble.text("digest", "unknown")),
        ("callback", Cell(console.remedy(runs.now(status)), _colour(status))),
    ]
    if applied and status.object("plan").text("what") != "idle":
        same = "the pods are the same now" if status.true("current") else "the pods changed since"
        text = f"run {applied.text('run')}, for {counted(applied.count('pods'), 'pod')}; {same}"
        pairs.append(("applied", text))
    return pairs


def _leader(status: UntrustedJson) -> str | Cell:
    leader = status.object("leader")
    if not leader:
        return Cell("none", "bad")
    at = f" at {leader.text('address')}" if "address" in leader else ""
    text = f"{leader.text('id', '?')}{at}, term {leader.text('term', '?')}"
    if (silent := leader.number("last_seen_seconds", "silent") or 0) >= runs.SILENT:
        return Cell(f"{text}, last seen {lasting(silent)} ago", "bad")
    if not status.object("etcd").true("ok"):
        return Cell(f"{text}, when etcd last answered", "warn")
    return text


def _masters(status: UntrustedJson) -> str:
    """Name the candidates; one with another callback than the leader is part of a deployment."""
    ours = status.object("leader").text("fingerprint")
    names = []
    for each in status.objects("candidates"):
        theirs = each.text("fingerprint")
        other = " (another callback)" if ours and theirs and ours != theirs else ""
        names.append(f"{each.text('id', '?')}{other}")
    return f"{len(names)}: {', '.join(names)}" if names else "none"


def _etcd(etcd: UntrustedJson) -> str | Cell:
    seconds = etcd.number("seconds")
    since = "" if seconds is None else f", mirror confirmed {lasting(seconds)} ago"
    if alarms := etcd.texts("alarms"):
        return Cell(f"has raised {', '.join(alarms)}{since}", "bad")
    return f"answers{since}" if etcd.true("ok") else Cell(f"does not answer{since}", "bad")


def _pods(ensemble: UntrustedJson) -> str:
    roles = ensemble.object("roles")
    text = ", ".join(f"{roles.text(role)} {role}" for role in sorted(roles.fields))
    live = ensemble.count("live")
    facts = f"; {live} with live facts" if live else ""
    return f"{ensemble.count('pods')}: {text}{facts}" if text else str(ensemble.count("pods"))


def _colour(status: UntrustedJson) -> str:
    return {"brake": "bad", "gap": "warn", "retry": "warn"}.get(
        status.object("plan").text("hold"), ""
    )
