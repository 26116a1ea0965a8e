"""The oracle: which test, if any, fails with a mutant in place.

A plug-in of pytest. Everything is imported and collected once, in this process, which then forks a
child for each mutant. The child puts the mutant's code into the loaded functions and runs, one by
one, the tests that execute the mutant's lines: the quickest first, simulations last. So a mutant
costs no import, nothing is ever written to the source tree, several run in parallel, and a run that
is killed leaves nothing behind.

A first pass without any mutant finds which lines each test executes, in how much time, and that
none fails. Then a test that takes many times its own fails: in CPU time, which the load of the
machine does not change much. Tests that wait for processes are ended by pytest-timeout.
"""

import functools
import gc
import hashlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, Self

import pytest
from tests.mutation.forks import Died, calls
from tests.mutation.mutants import Mutant

SURVIVED, UNREACHED, TIMEOUT = "survived", "unreached", "time-out"
_SLOW = 5.0  # times as much CPU time as without a mutant is a hang
_LIMIT = 1800.0  # seconds of wall time for one child: nothing else should let it come to that


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant: `outcome` is above, or the stage of the test `by` that killed it."""

    outcome: str
    by: str = ""

    @property
    def killed(self) -> bool:
        return self.outcome not in (SURVIVED, UNREACHED)


@dataclass(frozen=True, slots=True)
class Profile:
    """What a test did without a mutant; `lines` by path, `cpu` in seconds of CPU time."""

    seconds: float
    cpu: float
    lines: dict[str, list[int]]
    failure: str = ""


@dataclass(slots=True, eq=False)
class Oracle:
    """Judges `mutants` while pytest runs with it; `verdicts` by name then says what became of them.

    `paths` are all the files under test, those of other mutants too: what runs there is kept.
    `stage` returns a test's stage, one of `stages`, by its node id. `spare` is how many seconds of
    CPU time a test has besides a multiple of what it took without a mutant. `tell` is called with
    each verdict, and how many are yet to come.
    """

    mutants: Sequence[Mutant]
    paths: Sequence[Path]
    jobs: int
    spare: float
    stages: Sequence[str]
    stage: Callable[[str], str]
    tell: Callable[[Mutant, Verdict, int], None]
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    _items: dict[str, pytest.Item] = field(default_factory=dict)
    _failure: str = ""

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self) -> None:
        """Have hypothesis take the same examples each time, keep none, and not look for small ones.

        Imported here: pytest wants to be first, to rewrite it.
        """
        from hypothesis import HealthCheck, Phase, settings

        settings.register_profile(
            "mutation",
            derandomize=True,
            database=None,
            deadline=None,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=(HealthCheck.too_slow,),
        )
        settings.load_profile("mutation")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Judge the mutants, instead of running the tests that were collected."""
        if session.testsfailed:
            raise session.Interrupted(f"{session.testsfailed} errors during collection")
        cache = session.config.cache
        assert cache is not None
        self._items = {item.nodeid: item for item in session.items}
        state = self._state(session.config.rootpath)
        with tempfile.TemporaryDirectory(prefix="mutation-") as scratch:
            kept = cache.get("mutation/profiles", {"state": ""})
            if kept["state"] == state:
                profiles = {name: Profile(**one) for name, one in kept["profiles"].items()}
            else:
                profiles = self._profile(scratch)
                found = {name: asdict(one) for name, one in profiles.items()}
                cache.set("mutation/profiles", {"state": state, "profiles": found})
            known = cache.get("mutation/verdicts", {})
            try:
                self._judge(profiles, known, state, scratch)
            finally:
                cache.set("mutation/verdicts", known)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of a failure, in the child."""
        if report.failed and not self._failure:
            self._failure = report.longreprtext or "failed"

    def _state(self, top: Path) -> str:
        """Return a hash of the code under test and of its tests."""
        tool = top / "tests" / "mutation"
        files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
        loaded = {Path(file) for file in files if file.endswith(".py")}
        ours = {path for path in loaded if path.is_relative_to(top) and path.parent != tool}
        ours = {path for path in ours if "site-packages" not in path.parts}
        total = hashlib.sha256(repr(sorted(self._items)).encode())
        for path in sorted({*ours, *self.paths, *(item.path for item in self._items.values())}):
            total.update(f"{path}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        return total.hexdigest()

    def _profile(self, scratch: str) -> dict[str, Profile]:
        items = list(self._items.values())
        step = 4 * self.jobs
        shares = (("", functools.partial(self._measure, items[i::step])) for i in range(step))
        profiles: dict[str, Profile] = {}
        for _, found in calls(shares, jobs=self.jobs, scratch=scratch, limit=_LIMIT):
            if isinstance(found, Died):
                raise pytest.Session.Interrupted(f"without a mutant, the tests end with {found}")
            profiles.update(found)
        failures = [f"{name}\n{p.failure}" for name, p in profiles.items() if p.failure]
        if failures:
            raise pytest.Session.Interrupted("\n".join(("fail without a mutant:", *failures)))
        return profiles

    def _measure(self, items: Sequence[pytest.Item]) -> dict[str, Profile]:
        paths = {str(path) for path in self.paths}
        profiles = {}
        for item in items:
            started, cpu = time.perf_counter(), time.process_time()
            with _Trace(paths) as trace:
                failure = self._run(item)
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
            lines = {path: sorted(numbers) for path, numbers in trace.lines.items()}
            profiles[item.nodeid] = Profile(seconds, cpu, lines, failure)
        return profiles

    def _judge(
        self, profiles: dict[str, Profile], known: dict[str, Any], state: str, scratch: str
    ) -> None:
        """Find every verdict. `known` has those of earlier runs, and is brought up to date."""
        reached = {
            name: {path: set(lines) for path, lines in profile.lines.items()}
            for name, profile in profiles.items()
        }

        def conclude(mutant: Mutant, verdict: Verdict) -> None:
            self.verdicts[mutant.name] = verdict
            known[mutant.name] = {"state": state, "after": mutant.after, **asdict(verdict)}
            self.tell(mutant, verdict, len(self.mutants) - len(self.verdicts))

        def work() -> Iterator[tuple[Mutant, Callable[[], Verdict]]]:
            for mutant in self.mutants:
                old = known.get(mutant.name, {"state": "", "by": ""})
                if old["state"] == state and old["after"] == mutant.after:
                    conclude(mutant, Verdict(old["outcome"], old["by"]))
                    continue
                lines = set(range(mutant.first, mutant.last + 1))
                path = str(mutant.path)
                tests = [name for name, found in reached.items() if lines & found.get(path, set())]
                if not tests:
                    conclude(mutant, Verdict(UNREACHED))
                    continue
                order = {
                    name: (
                        name != old["by"],  # what killed it before will most likely do so again
                        self.stages.index(self.stage(name)),
                        profiles[name].seconds,
                    )
                    for name in tests
                }
                tests.sort(key=order.__getitem__)
                limits = {name: self.spare + _SLOW * profiles[name].cpu for name in tests}
                yield mutant, functools.partial(self._try, mutant, limits)

        for mutant, found in calls(work(), jobs=self.jobs, scratch=scratch, limit=_LIMIT):
            if isinstance(found, Verdict):
                conclude(mutant, found)
            elif found.signal in (signal.SIGPROF, signal.SIGKILL):
                conclude(mutant, Verdict(TIMEOUT))
            else:
                conclude(mutant, Verdict(self.stages[0], f"the end of the process: {found}"))

    def _try(self, mutant: Mutant, limits: dict[str, float]) -> Verdict:
        """Run tests with the mutant in place until one fails. In a child of its own."""
        _swap(mutant.original, mutant.changed)
        for name, seconds in limits.items():
            signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF then ends this process
            failure = self._run(self._items[name])
            if failure:
                return Verdict(TIMEOUT if "Failed: Timeout" in failure else self.stage(name), name)
        return Verdict(SURVIVED)

    def _run(self, item: pytest.Item) -> str:
        """Run one test by itself; returns its failure."""
        self._failure = ""
        item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
        return self._failure


def _swap(old: CodeType, new: CodeType) -> None:
    """Give every function that has the code `old` the code `new`."""
    functions = [
        found
        for found in gc.get_objects()
        if isinstance(found, FunctionType)
        and found.__code__.co_qualname == old.co_qualname
        and found.__code__.co_filename == old.co_filename
        and found.__code__.co_firstlineno == old.co_firstlineno
    ]
    if not functions:
        raise LookupError(f"{old.co_qualname} of {old.co_filename} is not loaded")
    for function in functions:
        function.__code__ = new


class _Trace:
    """Records which lines of some files are executed, in every thread."""

    def __init__(self, paths: Collection[str]) -> None:
        self.lines: dict[str, set[int]] = {}
        self._paths = paths

    def __enter__(self) -> Self:
        threading.settrace(self._call)
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        threading.settrace(None)

    def _call(self, frame: FrameType, _event: str, _arg: object) -> Any:  # noqa: ANN401
        path = frame.f_code.co_filename
        if path not in self._paths:
            return None
        lines = self.lines.setdefault(path, set())

        def line(frame: FrameType, event: str, _arg: object) -> Any:  # noqa: ANN401
            if event == "line":
                lines.add(frame.f_lineno)
            return line

        return line
