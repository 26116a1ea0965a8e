"""The problems of the callback and its runs: held, failed, late, cut off, feeding itself. Pure."""

from collections.abc import Mapping, Sequence

from kontrol.ensemble.canonical import JSON
from kontrol.master.leader.policy import FOLLOWING, SOON
from kontrol.master.operator.story import Facts, Problem, passed

# A run counts as long if it takes over `_LONG` times as long as usual, and over `_LONG_LEAST`
# seconds; as long as no run has been acknowledged, over `_LONG_FIRST` seconds.
_LONG, _LONG_LEAST, _LONG_FIRST = 3.0, 5.0, 10.0

_LATE = 10.0  # seconds beyond KONTROL_DAMPER_MAX, after which a run should have begun
_NAMED = 20  # lost pods that a leader of an earlier version names at most, without their number
_NOTE = 1024  # characters of a note, should a later version allow more
_HELD = ("gap", "brake", "retry", "rollout", "predecessor")  # problems of their own


def of_the_callback(facts: Facts) -> list[Problem]:
    """Return its problems."""
    plan, running = facts.plan, facts.running
    found = []
    if plan.get("hold") in ("brake", "gap"):
        what = _losses(plan)
        fix = "wait: they have one KONTROL_TTL to report again"
        if plan.get("hold") == "brake":
            fix = (
                "bring the pods back (check their network and nodes), or, if they are gone for "
                "good, run the callback with `kontrol release`"
            )
        found.append(
            Problem(
                f"{what}, and the callback is held by the {plan.get('hold')}",
                fix,
                kind=str(plan["hold"]),
            )
        )
    if running is not None and running.get("ended"):
        found.append(
            Problem(
                f"run {running.get('run')} failed (attempt {running.get('attempt')}): "
                f"{running.get('why')}",
                f"see its output with `kontrol explain {running.get('run')}`; it is retried",
                kind="run-failed",
            )
        )
    elif running is not None and plan.get("hold") != "predecessor":
        found += _of_the_run_before(running, facts.runs)
    found += _of_the_note(facts)
    if facts.candidates and not facts.candidates[0].fingerprint:
        found.append(
            Problem(
                "the leader has no callback: it keeps the ensemble, and runs nothing",
                "set KONTROL_CALLBACK on every master",
                kind="no-callback",
            )
        )
    if not facts.etcd:
        found += [*_of_the_run(facts), *_of_losses(facts), *_of_a_chain(facts)]
    return found


def _of_the_note(facts: Facts) -> list[Problem]:
    """Report the note of the last acknowledged run, and when the callback runs again."""
    applied, plan = facts.applied, facts.plan
    if applied is None or not applied.note:
        return []
    seconds, running = plan.get("seconds"), facts.running or {}
    what = f"run {applied.run} left a note"
    if "run" in running and not running.get("ended"):
        what = f"run {applied.run} left a note, and run {running['run']} is under way"
    elif plan.get("what") == "idle" and seconds is not None:
        what = f"the callback runs again in {_lasting(_number(seconds))}"
    return [
        Problem(
            f"{what}: {applied.note[:_NOTE]}",
            f"the callback wrote this in run {applied.run} ($NOTE_FILE); it stands until the next "
            "run is acknowledged, as after `kontrol run-now`",
            kind="note",
        )
    ]


def _of_the_run_before(
    running: Mapping[str, JSON], runs: Sequence[Mapping[str, JSON]]
) -> list[Problem]:
    """Report the run that failed last until the next one is acknowledged."""
    last: Mapping[str, JSON] = runs[0] if runs else {}
    if last.get("ok") is not False or last.get("run") == running.get("run"):
        return []
    return [
        Problem(
            f"run {last.get('run')} failed (attempt {last.get('attempt')}): {last.get('why')}",
            f"see its output with `kontrol explain {last.get('run')}`; run {running.get('run')} "
            "is under way in its place",
            kind="run-failed",
        )
    ]


def _of_the_run(facts: Facts) -> list[Problem]:
    """Report changes that wait for longer than they should, and a run that takes too long."""
    running, plan, waiting = facts.running or {}, facts.plan, facts.waiting
    age = running.get("age")
    if isinstance(age, int | float):
        most = _LONG_FIRST if facts.usual is None else max(_LONG_LEAST, _LONG * facts.usual)
        if age <= most:
            return []
        run = f"run {running.get('run')}"
        normal = "and no run has been acknowledged yet to compare it with"
        if facts.usual is not None:
            normal = f"which usually takes {_lasting(facts.usual)}"
        what = f"{run} has been under way for {_lasting(age)}, {normal}"
        if waiting is not None:
            what = f"changes have waited {_lasting(waiting)} behind {run}, {normal}"
            what += f"; it has been under way for {_lasting(age)}"
        fix = (
            "see in the leader's log what the callback does, and end what it waits for; set "
            "KONTROL_CALLBACK_TIMEOUT on the masters to end runs that take too long"
        )
        return [Problem(what, fix, kind="run-long")]
    if plan.get("hold") == "predecessor":
        what = f"run {running.get('run')} was cut off: its leader ended or stopped reporting"
        left = plan.get("seconds")
        within = "" if left is None else f" (at most {_lasting(_number(left))})"
        fix = f"wait: the callback runs again once the processes of that run are killed{within}"
        return [Problem(what, fix, kind="run-cut-off")]
    held = plan.get("hold") in _HELD or running.get("ended")  # a failure is a problem of its own
    if waiting is None or held or waiting <= facts.damper_max + _LATE or not facts.leader:
        return []
    what = f"changes have waited {_lasting(waiting)}, longer than KONTROL_DAMPER_MAX"
    what += f" ({facts.damper_max:g} s), and no run has begun"
    fix = "see the leader's log; to run the callback now, use `kontrol run-now`"
    return [Problem(what, fix, kind="changes-wait")]


def _of_losses(facts: Facts) -> list[Problem]:
    """Report pods that were lost until a run that was given their loss is acknowledged."""
    plan, running = facts.plan, facts.running or {}
    if not plan.get("lost") or plan.get("hold") in ("gap", "brake"):
        return []
    if plan.get("hold") == "predecessor":
        then = "the next run is given their loss"
    elif not running.get("ended") and "run" in running:
        then = f"run {running.get('run')}, which is under way, or the next one is given their loss"
    elif plan.get("hold") == "damper":
        then = f"the callback runs in {_lasting(_number(plan.get('seconds')))}"
    else:
        then = "the callback runs soon"
    return [
        Problem(
            f"{_losses(plan)}, and no run for that has been acknowledged yet",
            f"{then}; if you did not expect it, check the pods and their nodes",
            kind="pods-lost",
        )
    ]


def _of_a_chain(facts: Facts) -> list[Problem]:
    """Report runs that each cause the next, as long as they go on."""
    running = facts.running
    last: Mapping[str, JSON] = facts.runs[0] if facts.runs else {}
    if running is not None and not running.get("ended"):
        last = running
    elif facts.plan.get("what") == "idle":
        since = None if facts.now is None else passed(last.get("started"), facts.now)
        if since is None or since - _number(last.get("seconds")) > SOON:
            return []
    length = last.get("follows")
    if not isinstance(length, int) or length < FOLLOWING:
        return []
    return [
        Problem(
            f"{length} runs in a row each seem to be caused by the run before: the callback feeds "
            "itself",
            "let the callback change what it watches (payloads, which pods run, or the desired "
            "state) only if it differs from what it should be; if the callback changes nothing, "
            f"find what keeps changing with `kontrol explain {last.get('run')}`",
            kind="feeds-itself",
        )
    ]


def _losses(plan: Mapping[str, JSON]) -> str:
    """Count the lost pods, and name the first of them."""
    lost = plan.get("lost")
    names = [str(name) for name in lost] if isinstance(lost, list) else []
    many = plan.get("missing")
    least = not isinstance(many, int) and len(names) == _NAMED
    many = many if isinstance(many, int) else len(names)
    first = f" ({', '.join(names[:5])}{', ...' * (many > 5)})" * bool(names)
    what = f"{'at least ' * least}{many} of {plan.get('of')} pods"
    return f"{what} {'is' if many == 1 else 'are'} lost{first}"


def _number(value: JSON) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value)


def _lasting(seconds: float) -> str:
    """Return a duration, for people."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
