"""The process in which the code of a Python manifest runs: to describe it, or to run a function.

    python -m automaton.pyworker describe FILE        prints the machine as JSON
    python -m automaton.pyworker run FILE TAG         calls the state's function
    python -m automaton.pyworker probe FILE NAME      prints what a probe's function returns

The machine's own process never executes a manifest: it stays small, and the code cannot affect it.
`describe` prints one JSON document: the machine, or, with exit status `FAULTY`, the problem of the
file and its line.
"""

import importlib.util
import inspect
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from automaton.manifest import FAULTY
from automaton.states import Probe, State, States, made, name_of


class _Faulty(Exception):
    """The manifest is invalid, at a line."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def load(path: Path) -> States:
    """Execute the file and return the one `States` that it made."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise _Faulty(1, "not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(
        path.stem, module
    )  # for code that looks up its module: dataclasses, pickle
    found: list[States] = []
    made.set(found)
    spec.loader.exec_module(module)
    if len(found) != 1:
        line = found[1].line if found else 1
        raise _Faulty(line, f"States(...) is called {len(found)} times; call it once")
    return found[0]


def _describe(path: Path) -> dict[str, Any]:
    states = load(path)
    for state in states.states:
        if not isinstance(state, State):
            raise _Faulty(states.line, f"{state!r} in States([...]); expected State(function)")
        if _arity(state) is None:
            raise _Faulty(
                state.line, f"{state.tag!r} takes no argument or one, the input; not more"
            )
    described = [{"line": state.line, "fields": _fields(state)} for state in states.states]
    fields = {"initial": states.initial, "terminal": states.terminal}
    reports = {}
    for name in ("payload", "live"):
        report = getattr(states, name)
        if isinstance(report, Probe):
            reports[name] = _report(report)
        elif isinstance(report, str):
            fields[name] = report
        elif report is not None:
            raise _Faulty(
                states.line, f"{name}={report!r}; expected Probe(file, function, every=5)"
            )
    return {"line": states.line, "fields": fields, "states": described, "reports": reports}


def _report(probe: Probe) -> dict[str, Any]:
    """Return a probe as a YAML manifest has it; a function by its name."""
    script = isinstance(probe.run, str)
    if not isinstance(probe.run, str):
        try:
            inspect.signature(probe.run).bind()
        except TypeError:
            message = f"{name_of(probe.run)!r} takes arguments; a probe's function takes none"
            raise _Faulty(probe.line, message) from None
    fields = {"file": probe.file, "probe": name_of(probe.run), "every": probe.every}
    if probe.timeout is not None:
        fields["timeout"] = probe.timeout
    return {"line": probe.line, "fields": fields, "script": script}


def _fields(state: State) -> dict[str, Any]:
    """Return a state as a YAML manifest has it: only what differs from the defaults."""
    fields: dict[str, Any] = {"tag": state.tag}
    if state.transitions:
        fields["next"] = state.transitions
    if state.force:
        fields["force"] = state.force
    if state.timeout is not None:
        fields["timeout"] = state.timeout
    if state.on:
        fields["on"] = state.on
    if state.retry:
        fields["retry"] = state.retry
    if state.env:
        fields["env"] = state.env
    return fields


def _run(path: Path, tag: str) -> None:
    state = next(state for state in load(path).states if state.tag == tag)
    state.func(*[os.environ["INPUT"]][: _arity(state)])


def _probe(path: Path, name: str) -> None:
    """Print what a probe's function returns; what it prints itself goes to standard error."""
    answer = os.dup(1)
    os.dup2(2, 1)
    text = json.dumps(getattr(load(path), name).run())
    with os.fdopen(answer, "w", encoding="utf-8") as out:
        out.write(text)


def _arity(state: State) -> int | None:
    """Return how many arguments the function takes: 0 or 1; None if neither works."""
    signature = inspect.signature(state.func)
    for arguments in (("",), ()):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments)
    return None


def main() -> None:
    """Do what the command line says."""
    what, path, *rest = sys.argv[1:]
    file = Path(path).absolute()
    if what == "run":
        _run(file, *rest)
        return
    if what == "probe":
        _probe(file, *rest)
        return
    answer = os.dup(1)
    os.dup2(2, 1)  # the output of the file itself must not mix with the answer
    status = 0
    try:
        text = json.dumps(_describe(file))
    except _Faulty as error:
        status, text = FAULTY, _fault(error.line, str(error))
    except SyntaxError as error:
        status, text = FAULTY, _fault(error.lineno or 1, f"not Python: {error.msg}")
    except Exception as error:  # noqa: BLE001  # any exception of the user's file is its problem
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno or 1 for frame in frames if frame.filename == str(file)]
        status, text = FAULTY, _fault((lines or [1])[-1], f"{type(error).__name__}: {error}")
    os.write(answer, text.encode())
    sys.exit(status)


def _fault(line: int, message: str) -> str:
    return json.dumps({"line": line, "message": " ".join(message.split())})


if __name__ == "__main__":
    main()
