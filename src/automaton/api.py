"""Manifests in Python: states are functions.

    from automaton.api import State, States, goto

    def idle() -> None:
        goto("work", "42")

    def work(number: str) -> None:
        print("working on", number)

    def stop() -> None:
        print("done")

    States(
        [State(idle, transitions=["work"]), State(work, transitions=["idle"]), State(stop)],
        initial=idle,
        terminal=stop,
    )

Each function runs in a process of its own, with no argument or with the input. What it prints goes
where a script's output goes; if it raises, that is a script that failed, with its traceback.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from inspect import currentframe
from os import PathLike
from typing import Any

from automaton.client import ask

Function = Callable[..., object]
Tag = str | Function
"""A state is named by its tag or by its function."""

made: ContextVar[list["States"]] = ContextVar("made")
"""Where a file's `States` are gathered while it is being read (by `automaton.pyworker`)."""

GOTO_SECONDS = 0.5


class Refused(Exception):
    """The machine answered `KO`; the text is its reason."""


class State:
    """A state: a function, and the states that may follow, by tag, function or glob pattern.

    The tag is the function's name unless `tag` is given. The others are the keys of a YAML
    manifest; see `automaton.manifest.State`.
    """

    def __init__(
        self,
        func: Function,
        transitions: Sequence[Tag] = (),
        *,
        tag: str | None = None,
        force: bool = False,
        timeout: float | None = None,
        on: Mapping[str, Tag] | None = None,
        retry: int = 0,
        env: Mapping[str, str] | None = None,
    ) -> None:
        if not callable(func):
            raise TypeError(f"State({func!r}): expected a function, as in State(start)")
        if isinstance(transitions, str):
            raise TypeError(
                f"transitions={transitions!r}: expected a list, as in ['{transitions}']"
            )
        self.func = func
        self.tag = tag or name_of(func)
        self.line = _line()
        self.fields: dict[str, Any] = {"tag": self.tag}
        if transitions:
            self.fields["next"] = [name_of(after) for after in transitions]
        if force:
            self.fields["force"] = force
        if timeout is not None:
            self.fields["timeout"] = timeout
        if on:
            self.fields["on"] = {outcome: name_of(after) for outcome, after in on.items()}
        if retry:
            self.fields["retry"] = retry
        if env:
            self.fields["env"] = dict(env)


class States:
    """The machine. `payload` is the file in which the current state is to be kept, if any."""

    def __init__(
        self,
        states: Sequence[State],
        *,
        initial: Tag,
        terminal: Tag,
        payload: str | PathLike[str] | None = None,
    ) -> None:
        self.states = list(states)
        self.line = _line()
        self.fields = {"initial": name_of(initial), "terminal": name_of(terminal)}
        if payload is not None:
            self.fields["payload"] = str(payload)
        made.get([]).append(self)


def goto(tag: Tag, arg: str = "") -> None:
    """Ask the machine that runs this function to go to a state, with `arg` as its input.

    Raises `Refused` if the machine says no. While other transitions are queued before this one it
    returns without an answer: the machine does not judge it before their turn.
    """
    try:
        answer = ask(os.environ["SOCKET"], f"GOTO {name_of(tag)} {arg}", GOTO_SECONDS)
    except TimeoutError:
        return
    if answer != "OK":
        raise Refused(answer.removeprefix("KO "))


def name_of(tag: Tag) -> str:
    """Return the tag that a state's function has unless it is given another."""
    return tag if isinstance(tag, str) else getattr(tag, "__name__", repr(tag))


def _line() -> int:
    """Return the line of the file that called our caller."""
    frame = currentframe()
    for _ in range(2):
        frame = frame.f_back if frame else None
    return frame.f_lineno if frame else 1
