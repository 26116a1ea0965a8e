"""What is wrong with the callback and its runs: held, failed, late, lost pods, runs without end.

Pure.
"""

from collections.abc import Mapping, Sequence

from kontrol.ensemble.canonical import JSON
from kontrol.master.leader.policy import FOLLOWING, SOON
from kontrol.master.operator.story import Facts, Problem, passed

# A run is told as long that takes over `_LONG` times as long as usual, and over `_LONG_LEAST`
# seconds; where none is known that ended well, over `_LONG_FIRST` seconds.
_LONG, _LONG_LEAST, _LONG_FIRST = 3.0, 5.0, 10.0

_LATE = 10.0  # seconds beyond the damper's most, after which a run should have begun
_NAMED = 20  # lost pods that a leader of an earlier version names at most, without their number
_HELD = ("gap", "brake", "retry", "rollout", "predecessor")  # told by themselves


def of_the_callback(facts: Facts) -> list[Problem]:
    """Return what is wrong with it."""
    plan, running = facts.plan, facts.running
    found = []
    if plan.get("hold") in ("brake", "gap"):
        what = _losses(plan)
        fix = "wait for them; they have one TTL to come back"
        if plan.get("hold") == "brake":
            fix = "if they are gone for good: `kontrol release`; else see to their network or node"
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
                f"`kontrol explain {running.get('run')}` shows what it wrote; it is tried again",
                kind="run-failed",
            )
        )
    elif running is not None and plan.get("hold") != "predecessor":
        found += _of_the_run_before(running, facts.runs)
    if facts.candidates and not facts.candidates[0].fingerprint:
        found.append(
            Problem(
                "the leader has no callback: the ensemble is kept, and nothing is run",
                "set KONTROL_CALLBACK on every master",
                kind="no-callback",
            )
        )
    if not facts.etcd:
        found += [*_of_the_run(facts), *_of_losses(facts), *_of_a_chain(facts)]
    return found


def _of_the_run_before(
    running: Mapping[str, JSON], runs: Sequence[Mapping[str, JSON]]
) -> list[Problem]:
    """Tell of the run that failed last for as long as the next has not ended well."""
    last: Mapping[str, JSON] = runs[0] if runs else {}
    if last.get("ok") is not False or last.get("run") == running.get("run"):
        return []
    return [
        Problem(
            f"run {last.get('run')} failed (attempt {last.get('attempt')}): {last.get('why')}",
            f"`kontrol explain {last.get('run')}` shows what it wrote; run {running.get('run')} "
            "is under way in its place",
            kind="run-failed",
        )
    ]


def _of_the_run(facts: Facts) -> list[Problem]:
    """Tell of changes that wait for longer than they should, and of a run that takes too long."""
    running, plan, waiting = facts.running or {}, facts.plan, facts.waiting
    age = running.get("age")
    if isinstance(age, int | float):
        most = _LONG_FIRST if facts.usual is None else max(_LONG_LEAST, _LONG * facts.usual)
        if age <= most:
            return []
        run = f"run {running.get('run')}"
        normal = "no run ended well yet that would tell how long one takes"
        if facts.usual is not None:
            normal = f"which usually takes {_lasting(facts.usual)}"
        what = f"{run} has been under way for {_lasting(age)}, {normal}"
        if waiting is not None:
            what = f"changes have waited {_lasting(waiting)} behind {run}, {normal}"
            what += f"; it has been under way for {_lasting(age)}"
        fix = (
            "see in the leader's log what it does, and end what it waits for; "
            "KONTROL_CALLBACK_TIMEOUT on the masters ends a run that takes too long"
        )
        return [Problem(what, fix, kind="run-long")]
    if plan.get("hold") == "predecessor":
        what = f"run {running.get('run')} was cut off: its leader ended or stopped reporting"
        left = plan.get("seconds")
        within = "" if left is None else f" (at most {_lasting(_number(left))})"
        fix = f"wait: the callback runs again once the processes of that run are killed{within}"
        return [Problem(what, fix, kind="run-cut-off")]
    held = plan.get("hold") in _HELD or running.get("ended")  # a failure is told by itself
    if waiting is None or held or waiting <= facts.damper_max + _LATE or not facts.leader:
        return []
    what = f"changes have waited {_lasting(waiting)}, longer than the damper may wait"
    what += f" ({facts.damper_max:g} s), and no run has begun"
    fix = "see the leader's log; `kontrol run-now` runs the callback"
    return [Problem(what, fix, kind="changes-wait")]


def _of_losses(facts: Facts) -> list[Problem]:
    """Tell of pods that were lost, until a run was acknowledged that was told of them."""
    plan, running = facts.plan, facts.running or {}
    if not plan.get("lost") or plan.get("hold") in ("gap", "brake"):
        return []
    if plan.get("hold") == "predecessor":
        then = "the next run is told of them"
    elif not running.get("ended") and "run" in running:
        then = f"run {running.get('run')}, which is under way, is told of them or the next one is"
    elif plan.get("hold") == "damper":
        then = f"the callback is run in {_lasting(_number(plan.get('seconds')))}"
    else:
        then = "the callback is about to be run"
    return [
        Problem(
            f"{_losses(plan)}, and no run was acknowledged for that yet",
            f"{then}; if this is unexpected, see to the pods or their nodes",
            kind="pods-lost",
        )
    ]


def _of_a_chain(facts: Facts) -> list[Problem]:
    """Tell of runs that each cause the next, as long as they go on."""
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
            f"{length} runs in a row were each caused by the run before, it seems: the callback "
            "feeds itself",
            "a callback must not change what it watches (a payload, or whether a pod runs) unless "
            "it has to: compare first; if it does not, a pod changes all the time by itself, and "
            f"`kontrol explain {last.get('run')}` names it",
            kind="feeds-itself",
        )
    ]


def _losses(plan: Mapping[str, JSON]) -> str:
    """Count the pods that are lost, and name the first."""
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
