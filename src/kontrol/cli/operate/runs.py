"""Runs as text: the tables of the ledger, one run explained, and why none is under way now."""

from datetime import datetime

from kontrol.cli.operate.document import UntrustedJson, ago, counted, lasting
from kontrol.cli.table import Cell, Console

_REASONS = {
    "ensemble": ("change", "the ensemble changed"),
    "callback": ("callback", "the callback changed: its command line, or a file that it names"),
    "unacknowledged": ("retry", "the run before it was not acknowledged"),
    "asked": ("request", "it was requested"),
    "again": ("again", "the run before requested it ($AGAIN_FILE)"),
    "schedule": ("schedule", "KONTROL_EVERY had passed since the last acknowledged run"),
    "spec": ("spec", "the desired state changed"),
    "rollback": ("rollback", "an earlier state was restored"),
    "forget": ("forget", "a pod's registration was cleared"),
}
_WITHHELD = "standard error requires a token: set KONTROL_TOKEN_FILE"
_NAMED = 20  # pods that a plan names at most
SILENT = 3.0  # seconds: a healthy leader reports more often
HEAD = ("RUN", "STARTED", "TOOK", "PODS", "RESULT", "WHY", "CHANGES")
NUMBERS = ("RUN", "TOOK", "PODS", "TERM", "TRY")
_KINDS = ("joined", "left", "lost", "changed", "spec")


def reason(entry: UntrustedJson) -> str:
    """Return the reason of a run in one word."""
    name = entry.text("reason")
    return _REASONS.get(name, (name, ""))[0]


def changes(entry: UntrustedJson, *, names: bool = False) -> str:
    """Return what changed, as `2 joined, 1 lost`; with `names`, the first pods are named."""
    parts = []
    for kind in _KINDS:
        part = entry.object("changes").object(kind)
        if count := part.count("count"):
            first = part.texts("first")
            more = ", ..." if count > len(first) else ""
            named = f" ({', '.join(first)}{more})" if names and first else ""
            parts.append(f"{count} {kind}{named}")
    return ", ".join(parts) or "none"


def result(entry: UntrustedJson) -> Cell:
    """Return how a run ended."""
    if entry.true("ok"):
        return Cell("ok", "good")
    return Cell(f"failed: {entry.text('why', 'for an unknown reason')}", "bad")


def rows(entries: list[UntrustedJson], now: datetime | None) -> list[list[str | Cell]]:
    """Return the rows of the short table of runs, under `HEAD`."""
    return [
        [
            entry.text("run"),
            ago(entry.time("started"), now),
            _took(entry),
            entry.text("pods"),
            result(entry),
            reason(entry),
            changes(entry, names=True),
        ]
        for entry in entries
    ]


def ledger(entries: list[UntrustedJson], console: Console) -> list[str]:
    """Return the table of `kontrol runs`."""
    head = ("RUN", "TERM", "TRY", "STARTED", "TOOK", "PODS", "RESULT", "WHY", "CHANGES")
    lines: list[list[str | Cell]] = [
        [
            entry.text("run"),
            entry.text("term"),
            entry.text("attempt"),
            _date(entry.time("started")),
            _took(entry),
            entry.text("pods"),
            result(entry),
            reason(entry),
            changes(entry, names=True),
        ]
        for entry in entries
    ]
    return console.table(head, lines, NUMBERS)


def explain(entry: UntrustedJson, console: Console) -> list[str]:
    """Return all that is known of one run."""
    run, attempt, ok = entry.text("run"), entry.count("attempt"), entry.true("ok")
    head = f"Run {run} " + ("was acknowledged." if ok else "failed: its output was discarded.")
    why = _REASONS.get(entry.text("reason"), ("", "unknown"))[1]
    if by := entry.text("by"):
        why += f", by {by}"
    pairs: list[tuple[str, str | Cell]] = [("why", why)]
    if attempt > 1:
        earlier = entry.count("run") - 1
        pairs.append(
            (
                "attempt",
                f"{attempt}, after earlier ones failed; "
                + console.remedy(f"`kontrol explain {earlier}` shows one"),
            )
        )
    pairs += [
        ("started", f"{_date(entry.time('started'))} UTC, took {_took(entry)}"),
        ("term", entry.text("term")),
        ("pods", f"{entry.text('pods')}, digest {entry.text('digest', 'unknown')}"),
        ("callback", f"fingerprint {entry.text('fingerprint')[:16] or 'unknown'}"),
    ]
    pairs += [(kind, text) for kind in _KINDS[:-1] if (text := _kind(entry, kind))]
    pairs += _settings(entry)
    if changes(entry) == "none":
        pairs.append(("changes", "none since the last acknowledged run"))
    pairs.append(("ended", Cell(_ending(entry), "good" if ok else "bad")))
    if (again := entry.number("again")) is not None:
        pairs.append(("again", f"it requested another run in {lasting(again)}"))
    if note := entry.text("note"):
        pairs.append(("note", note))
    if entry.true("state_kept"):
        restore = console.remedy(f"`kontrol rollback {run}` restores it")
        pairs.append(("state", f"kept: {restore}"))
    elif ok and "state_kept" in entry:
        pairs.append(("state", "none: it is no longer kept, or no run had printed one yet"))
    lines = [console.paint(head, "good" if ok else "bad"), *console.fields(pairs)]
    stderr = entry.texts("stderr")
    if stderr:
        lines += [console.paint("end of standard error:", "dim")]
        lines += [f"  | {line}" for line in stderr]
    else:
        none = "standard error is empty" if "stderr" in entry else _WITHHELD
        lines.append(console.paint(none, "dim"))
    return lines


def now(status: UntrustedJson) -> str:
    """Return what the leader does about the callback, or why it does nothing."""
    running, plan = status.object("running"), status.object("plan")
    waiting = status.number("changes_waiting_seconds", "waiting")
    if under_way(status):
        attempt = running.count("attempt")
        again = f" (attempt {attempt})" if attempt > 1 else ""
        usual = status.number("usual_run_seconds", "usual")
        text = f"run {running.text('run')} is under way{again}{lasted(running, status)}"
        text += "" if usual is None else f"; runs usually take {lasting(usual)}"
        return text + ("" if waiting is None else f"; changes have waited {lasting(waiting)}")
    if running and not running.true("ended"):
        return _cut_off(plan, running)
    match plan.text("what"):
        case "idle":
            applied = status.object("applied").text("run")
            since = f", since run {applied} was for exactly these pods" if applied else ""
            return f"idle: nothing is due{since}{timed(plan)}"
        case "run":
            return f"a run is starting: {_due(plan)}"
        case "wait":
            return _held(plan, running)
        case _:
            etcd = status.object("etcd").true("ok")
            without = "unknown, because etcd does not answer; nothing runs without it"
            return "unknown to the master that answered" if etcd else without


def timed(plan: UntrustedJson) -> str:
    """Return when the next run comes although nothing is due, empty if none does."""
    seconds = plan.number("seconds")
    if seconds is None:
        return ""
    if plan.text("reason") == "schedule":
        return f"; by KONTROL_EVERY it runs in {lasting(seconds)}"
    return f"; it runs again in {lasting(seconds)}"


def under_way(status: UntrustedJson) -> bool:
    """Return whether a run is under way, on a leader that reports."""
    running, leader = status.object("running"), status.object("leader")
    cut_off = status.object("plan").text("hold") == "predecessor"
    reports = bool(leader) and (leader.number("last_seen_seconds", "silent") or 0) < SILENT
    return bool(running) and not running.true("ended") and not cut_off and reports


def lasted(running: UntrustedJson, status: UntrustedJson) -> str:
    """Return for how long a run has been under way, as ` for 3 s`, or nothing if unknown."""
    age = running.number("age")
    if age is None and (then := running.time("started")) and (now := status.time("time")):
        age = (now - then).total_seconds()
    return "" if age is None else f" for {lasting(age)}"


def _cut_off(plan: UntrustedJson, running: UntrustedJson) -> str:
    left = plan.number("seconds") if plan.text("hold") == "predecessor" else None
    return (
        f"run {running.text('run')} was cut off: its leader ended or stopped reporting; the "
        "callback runs again once the processes of that run are killed"
        f"{'' if left is None else f', in at most {lasting(left)}'}"
    )


def _held(plan: UntrustedJson, running: UntrustedJson) -> str:
    """Return what a run that is due waits for."""
    left = lasting(plan.number("seconds") or 0)
    pods = _missing(plan)
    why = running.text("why")
    failed = f"run {running.text('run')} failed" + (f" ({why})" if why else "")
    return {
        "damper": f"held by the damper for {left} more: {_due(plan)}",
        "retry": f"{failed}; it is retried in {left}, or immediately if the ensemble changes",
        "gap": f"held for {left} more: {pods} missing after an outage of masters or etcd",
        "brake": (
            f"HELD BY THE BRAKE for {left} more: {pods} are lost. It continues when they return or "
            "after `kontrol release`"
        ),
        "rollout": (
            f"the callback changed; waiting up to {left} for masters that have the previous one: "
            f"{', '.join(plan.texts('peers')) or 'unknown'}"
        ),
    }.get(plan.text("hold"), f"held for {left} more")


def _missing(plan: UntrustedJson) -> str:
    """Name the lost pods; masters name the first `_NAMED` at most."""
    lost = plan.texts("lost")
    many = plan.count("missing") or len(lost)
    first, of = ", ".join(lost[:5]), counted(plan.count("of"), "pod")
    least = "at least " if "missing" not in plan and many == _NAMED else ""
    return f"{least}{many} of {of} ({first}{', ...' if many > 5 else ''})"


def _due(plan: UntrustedJson) -> str:
    return _REASONS.get(plan.text("reason"), ("", "a run is due"))[1]


def _kind(entry: UntrustedJson, kind: str) -> str:
    part = entry.object("changes").object(kind)
    count, first = part.count("count"), part.texts("first")
    if not count:
        return ""
    more = f" and {count - len(first)} more" if count > len(first) else ""
    return f"{count}: {', '.join(first)}{more}"


def _settings(entry: UntrustedJson) -> list[tuple[str, str | Cell]]:
    """Return which keys of the desired state changed, and which client changed each when."""
    part = entry.object("changes").object("spec")
    pairs: list[tuple[str, str | Cell]] = []
    for each in part.objects("by"):
        by = f", by {each.text('by')}" if each.text("by") else ""
        at = f", {_date(each.time('at'))} UTC" if each.time("at") else ""
        pairs.append((each.text("did", "changed"), f"{each.text('key', '?')}{by}{at}"))
    more = part.count("count") - len(pairs)
    return pairs + ([("spec", f"{more} more keys changed")] if more > 0 else [])


def _ending(entry: UntrustedJson) -> str:
    """Return why a run ended, with the exit status or signal if the reason leaves it out."""
    why = entry.text("why", "acknowledged" if entry.true("ok") else "the reason is unknown")
    status = f"exit status {entry.text('status')}" if "status" in entry else ""
    if "signal" in entry:
        status = f"killed by signal {entry.text('signal')}"
    return f"{why}; {status}" if status and status not in why else why


def _took(entry: UntrustedJson) -> str:
    seconds = entry.number("seconds")
    return "" if seconds is None else lasting(seconds)


def _date(then: datetime | None) -> str:
    return then.strftime("%Y-%m-%d %H:%M:%S") if then else "unknown"
