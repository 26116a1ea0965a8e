"""Pods as text: the table, one pod with all its fields, and `--watch`.

`--watch` shows the table again at every change, until Ctrl-C. HTTP has no notifications, so it
asks a master every second: only for the digest, and for the pods if the digest changed. On a
terminal the table is redrawn in place, one write for each change, on the alternate screen: nothing
flickers, and the shell's own screen is back at the end. Elsewhere each change is printed.
"""

import contextlib
import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from kontrol.cli.command import say
from kontrol.cli.operate.document import UntrustedJson, counted
from kontrol.cli.rest import Rest, RestError
from kontrol.cli.table import Cell, Console
from kontrol.ensemble.canonical import JSON
from kontrol_common.text import escaped, escaped_json

_RARE = ("node", "zone", "payload", "live")
_FIRST = ("seq", "id", "role", "ip", "key", *_RARE)

_EVERY = 1.0  # seconds between requests: REST has no stream of changes to wait for
_ENTER = "\x1b[?1049h\x1b[?25l"  # the alternate screen, without a cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


def table(pods: Sequence[UntrustedJson], console: Console) -> list[str]:
    """Return the table of pods, in their order; a column that none of them needs is left out."""
    columns = [("SEQ", "seq"), ("ID", "id"), ("ROLE", "role"), ("ADDRESS", "ip"), ("KEY", "key")]
    columns += [(name.upper(), name) for name in _RARE if any(pod.fields.get(name) for pod in pods)]
    rows: list[list[str | Cell]] = [[_shown(pod, name) for _, name in columns] for pod in pods]
    return console.table([head for head, _ in columns], rows, ("SEQ",))


def one(pod: UntrustedJson, console: Console) -> list[str]:
    """Return all fields of one pod; those that are objects or lists come below the others."""
    names = [name for name in _FIRST if name in pod]
    names += sorted(name for name in pod.fields if name not in _FIRST)
    lines: list[str] = []
    pairs: list[tuple[str, str | Cell]] = []
    for name in names:
        value = pod.fields[name]
        if isinstance(value, dict | list) and value:
            lines += [console.paint(name, "dim")]
            lines += [f"  {line}" for line in escaped_json(value, indent=2).splitlines()]
        else:
            pairs.append((name, pod.text(name) or escaped_json(value)))
    return [*console.fields(pairs), *lines]


def matching(pods: list[JSON], roles: Collection[str]) -> list[JSON]:
    """Return the pods of these roles, or all if no role is given."""
    return [
        pod for pod in pods if not roles or (isinstance(pod, dict) and pod.get("role") in roles)
    ]


def named(pods: list[JSON], name: str) -> JSON:
    """Return the pod with this id or key, else the one with this number (`7` or `#7`), or None."""
    records = [pod for pod in pods if isinstance(pod, dict)]
    for pod in records:
        if name in (pod.get("id"), pod.get("key")):
            return pod
    number = name.removeprefix("#")
    return next((pod for pod in records if str(pod.get("seq")) == number), None)


def _shown(pod: UntrustedJson, name: str) -> str:
    value = pod.fields.get(name, "")
    if name == "seq":
        return f"#{pod.text('seq', '?')}"
    return value if isinstance(value, str) else escaped_json(value)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The pods as last received; `problem` says why they may be out of date, else empty."""

    digest: str
    pods: tuple[JSON, ...]
    problem: str = ""

    @property
    def live(self) -> tuple[JSON, ...]:
        """The live facts of the pods that have some."""
        return tuple(pod["live"] for pod in self.pods if isinstance(pod, dict) and "live" in pod)


def follow(rest: Rest, roles: Collection[str], *, as_json: bool, reach: str = "") -> NoReturn:
    """Show the pods of `roles` at every change until interrupted; `reach`: see `Console`.

    Raises `RestError` if no master answers at first.
    """
    snapshot = _look(rest, roles, None)
    console = Console.of(sys.stdout, os.environ, reach)
    drawn = console.width is not None and not as_json
    with _alternate_screen() if drawn else contextlib.nullcontext():
        shown: object = None
        while True:
            now = (snapshot.digest, snapshot.problem, snapshot.live if drawn else (), console)
            if shown != now:
                if drawn:
                    _draw(_lines(snapshot, console), console.height or 24)
                else:
                    _print(snapshot, as_json=as_json)
                shown = now
            time.sleep(_EVERY)
            console = Console.of(sys.stdout, os.environ, reach)  # it may have another size now
            try:
                snapshot = _look(rest, roles, snapshot)
            except RestError as error:
                snapshot = replace(snapshot, problem=console.remedy(str(error)))


def _look(rest: Rest, roles: Collection[str], last: Snapshot | None) -> Snapshot:
    ensemble = UntrustedJson(rest.get("/v1/status").document).object("ensemble")
    if last is not None and ensemble.text("digest") == last.digest and not ensemble.count("live"):
        return replace(last, problem="")
    document = rest.get("/v1/pods").document
    found = document.get("pods")
    pods = matching(found if isinstance(found, list) else [], roles)
    return Snapshot(UntrustedJson(document).text("digest"), tuple(pods))


def _lines(snapshot: Snapshot, console: Console) -> list[str]:
    head = f"{counted(len(snapshot.pods), 'pod')}, digest {escaped(snapshot.digest)}"
    lines = [console.paint(line, "head") for line in console.wrap(head)]
    for line in snapshot.problem.splitlines():
        lines += [console.paint(part, "bad") for part in console.wrap(line, "  ")]
    return [*lines, "", *table([UntrustedJson.of(pod) for pod in snapshot.pods], console)]


def _print(snapshot: Snapshot, *, as_json: bool) -> None:
    if snapshot.problem:
        say(snapshot.problem)
    elif as_json:
        pods = list(snapshot.pods)
        print(escaped_json({"pods": pods, "digest": snapshot.digest}), flush=True)
    else:
        print("\n".join([*_lines(snapshot, Console()), ""]), flush=True)


def _draw(lines: Sequence[str], height: int) -> None:
    if len(lines) > height:
        hidden = len(lines) - height + 1
        lines = [*lines[: height - 1], f"... and {counted(hidden, 'line')} more"]
    sys.stdout.write(_HOME + "\n".join(f"{line}{_CLEAR_LINE}" for line in lines) + _CLEAR_BELOW)
    sys.stdout.flush()


@contextlib.contextmanager
def _alternate_screen() -> Iterator[None]:
    sys.stdout.write(_ENTER)
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
