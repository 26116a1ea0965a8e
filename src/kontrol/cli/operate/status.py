"""The whole situation on one screen. Its first line says in words whether all is well."""

from collections.abc import Sequence

from kontrol.cli.operate import runs
from kontrol.cli.operate.document import UntrustedJson, counted, lasting
from kontrol.cli.table import Cell, Console


def problems(status: UntrustedJson) -> list[tuple[str, str]]:
    """Return what is wrong and how to fix it: as the master says, else as the status shows.

    Masters of an earlier version call the fix `mend`.
    """
    told = [
        (each.text("what", "?"), each.text("fix", each.text("mend")))
        for each in status.docs("problems")
    ]
    if told:
        return told
    if not status.doc("etcd").true("ok"):
        told.append(("etcd does not answer this master", "look at etcd, and the master's log"))
    if not status.doc("leader"):
        told.append(("there is no leader", "look at the log of each master"))
    return told


def screen(status: UntrustedJson, asked: str, paper: Console) -> list[str]:
    """Lay the situation out; `asked` is the URL of the master that answered."""
    lines = _verdict(status, paper)
    lines += ["", *paper.fields(_fields(status, asked))]
    entries = status.docs("runs")
    if entries:
        rows = runs.rows(entries, status.time("time"))
        lines += ["", *paper.table(runs.HEAD, rows, runs.NUMBERS)]
    return lines


def _verdict(status: UntrustedJson, paper: Console) -> list[str]:
    wrong = problems(status)
    if not wrong:
        ensemble = status.doc("ensemble")
        [line, *more] = paper.wrap(
            f"All is well: {counted(ensemble.count('pods'), 'pod')}; {_doing(status)}."
        )
        return [paper.paint(text, "good") for text in (line, *more)]
    number = len(wrong)
    head = "1 thing is wrong:" if number == 1 else f"{number} things are wrong:"
    lines = [paper.paint(head, "bad")]
    for what, fix in wrong:
        lines += [paper.paint(line, "bad") for line in paper.wrap(f"- {what}", "  ")]
        lines += paper.wrap(f"  {fix}", "  ") if fix else []
    return lines


def _doing(status: UntrustedJson) -> str:
    """Return in few words what the leader does, for the first line."""
    running, plan = status.doc("running"), status.doc("plan")
    if runs.under_way(status):
        return f"run {running.text('run')} is under way{runs.lasted(running, status)}"
    seconds = plan.number("seconds") or 0
    return {
        "idle": "nothing is due",
        "wait": f"a run is due in {lasting(seconds)}" if seconds > 0 else "a run is due now",
        "run": "a run is starting",
    }.get(plan.text("what"), "what is due is not known to this master")


def _fields(status: UntrustedJson, asked: str) -> Sequence[tuple[str, str | Cell]]:
    ensemble, applied = status.doc("ensemble"), status.doc("applied")
    pairs: list[tuple[str, str | Cell]] = [
        ("tier", f"{status.text('namespace', '?')}/{status.text('app', '?')}"),
        (
            "asked",
            f"{status.text('master', '?')} at {asked}, version {status.text('version', '?')}",
        ),
        ("leader", _leader(status)),
        ("masters", _masters(status)),
        ("etcd", _etcd(status.doc("etcd"))),
        ("pods", _pods(ensemble)),
        ("digest", ensemble.text("digest", "unknown")),
        ("callback", Cell(runs.now(status), _colour(status))),
    ]
    if applied and status.doc("plan").text("what") != "idle":
        same = "the pods are the same now" if status.true("current") else "the pods changed since"
        told = f"run {applied.text('run')}, for {counted(applied.count('pods'), 'pod')}; {same}"
        pairs.append(("applied", told))
    return pairs


def _leader(status: UntrustedJson) -> str | Cell:
    leader = status.doc("leader")
    if not leader:
        return Cell("none", "bad")
    at = f" at {leader.text('address')}" if "address" in leader else ""
    told = f"{leader.text('id', '?')}{at}, term {leader.text('term', '?')}"
    if (silent := leader.number("last_seen_seconds", "silent") or 0) >= runs.SILENT:
        return Cell(f"{told}, last seen {lasting(silent)} ago", "bad")
    if not status.doc("etcd").true("ok"):
        return Cell(f"{told}, when etcd last answered", "warn")
    return told


def _masters(status: UntrustedJson) -> str:
    """Name the candidates; a callback that is not the leader's is a deploy under way."""
    ours = status.doc("leader").text("fingerprint")
    told = []
    for each in status.docs("candidates"):
        theirs = each.text("fingerprint")
        other = " (another callback)" if ours and theirs and ours != theirs else ""
        told.append(f"{each.text('id', '?')}{other}")
    return f"{len(told)}: {', '.join(told)}" if told else "none"


def _etcd(etcd: UntrustedJson) -> str | Cell:
    seconds = etcd.number("seconds")
    since = "" if seconds is None else f", mirror confirmed {lasting(seconds)} ago"
    if alarms := etcd.texts("alarms"):
        return Cell(f"has raised {', '.join(alarms)}{since}", "bad")
    return f"answers{since}" if etcd.true("ok") else Cell(f"does not answer{since}", "bad")


def _pods(ensemble: UntrustedJson) -> str:
    roles = ensemble.doc("roles")
    told = ", ".join(f"{roles.text(role)} {role}" for role in sorted(roles.fields))
    return f"{ensemble.count('pods')}: {told}" if told else str(ensemble.count("pods"))


def _colour(status: UntrustedJson) -> str:
    return {"brake": "bad", "gap": "warn", "retry": "warn"}.get(status.doc("plan").text("hold"), "")
