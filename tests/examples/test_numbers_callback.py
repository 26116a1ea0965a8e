"""The numbering's callback, run after run: crashes anywhere, and keepalives that come late."""

import contextlib
import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.examples.support import Callback

CALLBACK = Callback("numbers/callback.py")


class Crash(BaseException):
    """The leader was killed at this point of its run."""


@dataclass
class Pod:
    """A pod: its automaton, and what the masters have seen of it."""

    since: int
    state: str = "starting"
    restarted: str = ""
    restarts: list[str] = field(default_factory=list)
    seen: Any = ""

    def report(self) -> None:
        self.seen = {"state": self.state, "since": str(self.since)}


@dataclass
class Outcome:
    """What a run left: its state, and its files."""

    state: Any
    again: str | None
    note: str | None


def run_callback(
    document: dict[str, Any], act: Callable[[Sequence[str]], bool], folder: Path
) -> Outcome:
    """Run the callback; `act` gets its commands, and says whether they are done."""
    files = {name: folder / name for name in ("AGAIN_FILE", "NOTE_FILE")}
    for path in files.values():
        path.unlink(missing_ok=True)
    wrote = CALLBACK.run(
        document,
        lambda words: "pod | done\n" if act(words) else "pod | OK\n",
        {name: str(path) for name, path in files.items()},
    )
    again, note = (path.read_text("utf-8") if path.exists() else None for path in files.values())
    return Outcome(json.loads(wrote), again, note)


class World:
    """Pods that come, go and are restarted, and a leader that may be killed at any point."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = (f"pod-{n}" for n in itertools.count())
        self.clock = itertools.count(1)
        self.pods: dict[str, Pod] = {}
        self.spec: dict[str, str] = {}
        self.state: Any = None
        self.numbers: dict[str, int] = {}  # of the pods that live, as they were published
        self.asked: set[str] = set()  # the pods that lived when the last token was set
        self.last = Outcome(None, None, None)

    def step(self, name: str, which: int) -> None:
        """Have something happen, to one of the pods if it is about one."""
        if name in ("join", "set", "run", "crash"):
            getattr(self, name)(which)
        elif self.pods:
            getattr(self, name)(sorted(self.pods)[which % len(self.pods)])

    def join(self, _which: int) -> None:
        self.pods[next(self.names)] = Pod(next(self.clock))

    def leave(self, pod: str) -> None:
        del self.pods[pod]
        self.numbers.pop(pod, None)

    def set(self, _which: int) -> None:
        self.spec["restart"] = f"token-{next(self.clock)}"
        self.asked = set(self.pods)

    def progress(self, pod: str) -> None:
        found = self.pods[pod]
        following = {"restarting": "starting", "starting": "started"}
        if found.state in following:
            found.state, found.since = following[found.state], next(self.clock)

    def fail(self, pod: str) -> None:
        if self.pods[pod].state == "started":
            self.pods[pod].state, self.pods[pod].since = "starting", next(self.clock)

    def report(self, pod: str) -> None:
        self.pods[pod].report()

    def run(self, _which: int = 0) -> None:
        """Run the callback until it is committed."""
        self.last = run_callback(self.document(), self.act, self.folder)
        self.state = self.last.state
        numbers = self.state["numbers"]
        assert len(set(numbers.values())) == len(numbers) == len(self.pods)
        if due := [pod for pod in self.state["todo"] if pod in self.pods]:
            assert self.last.again, "nothing would go on"
        if self.last.note is not None:
            assert self.last.note.startswith(f"{len(due)} left to restart; waits for ")

    def crash(self, which: int) -> None:
        """Run it, and lose its leader before or after one of its commands, or before the commit."""
        commands = itertools.count()

        def act(words: Sequence[str]) -> bool:
            number = next(commands)
            if which == 2 * number:
                raise Crash
            good = self.act(words)
            if which == 2 * number + 1:
                raise Crash
            return good

        with contextlib.suppress(Crash):
            run_callback(self.document(), act, self.folder)

    def document(self) -> dict[str, Any]:
        pods = [{"id": name, "payload": pod.seen} for name, pod in self.pods.items()]
        return {"pods": pods, "state": self.state, "spec": dict(self.spec)}

    def act(self, words: Sequence[str]) -> bool:
        """Do what `kontrol` would do, and tell whether it succeeds."""
        match words:
            case ["kontrol", "publish", "numbers", text]:
                for pod, number in json.loads(text).items():
                    if pod in self.pods:
                        assert self.numbers.setdefault(pod, number) == number
                return True
            case ["kontrol", "invoke", "--timeout", _, pod, "--", "restart", token]:
                seen = [each.seen and each.seen["state"] for each in self.pods.values()]
                assert set(seen) == {"started"}, "one is not back yet"
                assert sorted(self.numbers.values()) == list(range(len(self.numbers))), (
                    "one is gone"
                )
                found = self.pods[pod]
                if found.restarted == token:
                    return found.state == "started"
                if found.state == "started":
                    away = [each for each in self.pods.values() if each.state == "restarting"]
                    assert not away, "two at a time"
                    found.state, found.since = "restarting", next(self.clock)
                    found.restarted = token
                    found.restarts.append(token)
                return False
            case _:
                raise AssertionError(words)

    def settle(self) -> None:
        """Let all that is under way end; vacant numbers are filled."""
        for _ in range(12 * (len(self.pods) + 4)):
            for name, pod in self.pods.items():
                self.progress(name)
                pod.report()
            self.run()
            taken = set(self.state["numbers"].values())
            if taken != set(range(len(taken))):
                self.join(0)
            elif self.last.again is None:
                return
        raise AssertionError(f"it does not end: {self.last}")


STEPS = ("join", "leave", "set", "fail", "crash", *3 * ("progress", "report", "run"))


# The second token comes while a pod restarts, which its masters still take for started.
SECOND = "set run run progress-0 progress-0 run run set run run"
# The first of three is lost while it restarts.
LOST = "set run run leave-0 run"
# Of two that join, one leaves after a run that was killed when it had published.
CRASH = "join join crash-1 leave-3 run"


def steps(text: str) -> list[tuple[str, int]]:
    """Read steps that are written down."""
    words = (word.partition("-") for word in text.split())
    return [(name, int(which or 0)) for name, _, which in words]


@settings(max_examples=100)
@example(steps(SECOND))
@example(steps(LOST))
@example(steps(CRASH))
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 4)), max_size=60))
def test_no_crash_and_no_late_keepalive_restarts_a_pod_twice(
    history: list[tuple[str, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for number in range(3):
            world.join(number)
        world.settle()
        for name, which in history:
            world.step(name, which)
        world.settle()
        for pod in world.pods.values():
            assert len(set(pod.restarts)) == len(pod.restarts)
        assert world.last.note is None
        assert world.numbers == world.state["numbers"]
        assert sorted(world.numbers.values()) == list(range(len(world.pods)))
        for name in world.asked & set(world.pods):
            assert world.pods[name].restarts.count(world.spec["restart"]) == 1
