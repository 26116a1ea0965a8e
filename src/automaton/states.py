"""States as functions, as they are written in a manifest: `automaton.api` is their public face.

Each `States` that is made while a file is read is gathered in `made`, for `automaton.pyworker`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from inspect import currentframe
from os import PathLike

from automaton.client import ask

Function = Callable[..., object]
Tag = str | Function
"""A state is named by its tag or its function."""

made: ContextVar[list["States"]] = ContextVar("made")
"""The `States` of the file that is being read."""

GOTO_SECONDS = 0.5


class Refused(Exception):
    """The machine answered `KO`; the text is its reason."""


class State:
    """A state: a function, and the states that may follow, by tag, function or glob pattern.

    `func` takes no argument, or one: the input, a `str`. `tag` is the function's name unless it is
    given. A state that is `force` is not interrupted by `GOTO`. `timeout` is in seconds. `on` names
    the next state by how the function ended: `success`, `failure` or `timeout`. `retry` is how
    often a function that fails is called again. `env` is added to the environment.

    The attributes are called as the arguments are, with states by their tags. Raises `TypeError` if
    `func` is not callable or `transitions` is a string. The rest is checked when the manifest is
    loaded.
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
        self.transitions = [name_of(after) for after in transitions]
        self.tag = tag or name_of(func)
        self.force = force
        self.timeout = timeout
        self.on = {outcome: name_of(after) for outcome, after in (on or {}).items()}
        self.retry = retry
        self.env = dict(env or {})
        self.line = caller_line()


class Probe:
    """What is reported in `file` beside what automaton knows: what `run` returns, or prints.

    `run` is a function without arguments that returns a `dict` for JSON, or a shell script that
    prints one. It runs every `every` seconds, for at most `timeout` seconds.

    The attributes are called as the arguments are. Raises `TypeError` if `run` is neither.
    """

    def __init__(
        self,
        file: str | PathLike[str],
        run: str | Callable[[], Mapping[str, object]],
        *,
        every: float,
        timeout: float | None = None,
    ) -> None:
        if not callable(run) and not isinstance(run, str):
            raise TypeError(f"Probe(..., {run!r}): expected a function or a script")
        self.file = str(file)
        self.run = run
        self.every = every
        self.timeout = timeout
        self.line = caller_line()


class States:
    """The machine. `payload` is the file in which the current state is kept as JSON, if any.

    With a `Probe` the file has what that reports, too. `live` is that of the live facts.

    A manifest makes one. The attributes are called as the arguments are, with states by their tags.
    """

    def __init__(
        self,
        states: Sequence[State],
        *,
        initial: Tag,
        terminal: Tag,
        payload: str | PathLike[str] | Probe | None = None,
        live: Probe | None = None,
    ) -> None:
        self.states = list(states)
        self.initial = name_of(initial)
        self.terminal = name_of(terminal)
        fixed = payload is None or isinstance(payload, Probe)
        self.payload = payload if fixed else str(payload)
        self.live = live
        self.line = caller_line()
        made.get([]).append(self)


def goto(tag: Tag, arg: str = "") -> None:
    """Ask the machine that runs this function to go to a state, with `arg` as its input.

    Raises `Refused` if the machine answers no. While other transitions are queued before this one
    it returns without an answer: the machine does not judge it before its turn.
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


def caller_line() -> int:
    """Return the line of the file that called our caller."""
    frame = currentframe()
    for _ in range(2):
        frame = frame.f_back if frame else None
    return frame.f_lineno if frame else 1
