"""`kontrol pods --watch`: the table of pods, again whenever they change, until Ctrl-C.

HTTP has no news, so a master is asked every second; only for the digest, and for the pods when it
is another. On a terminal the table is drawn in place, one write for each change, on the terminal's
second screen, so that nothing flickers and the shell's own is back at the end. Elsewhere each
change is printed.
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
from kontrol.cli.operate.pods import matching, table
from kontrol.cli.rest import Rest, RestError
from kontrol.cli.table import Console
from kontrol.ensemble.canonical import JSON
from kontrol_common.text import escaped, escaped_json

_EVERY = 1.0  # seconds

_ENTER = "\x1b[?1049h\x1b[?25l"  # the second screen, no cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen last; `trouble` says why it may be old."""

    digest: str
    pods: tuple[JSON, ...]
    trouble: str = ""


def follow(rest: Rest, roles: Collection[str], *, as_json: bool) -> NoReturn:
    """Show every change until interrupted. Raises `RestError` if no master answers at first."""
    sight = _look(rest, roles, None)
    paper = Console.of(sys.stdout, os.environ)
    drawn = paper.width is not None and not as_json
    with _second_screen() if drawn else contextlib.nullcontext():
        shown: object = None
        while True:
            if shown != (sight.digest, sight.trouble, paper):
                if drawn:
                    _draw(_lines(sight, paper), paper.height or 24)
                else:
                    _print(sight, as_json=as_json)
                shown = (sight.digest, sight.trouble, paper)
            time.sleep(_EVERY)  # the rate at which it asks
            paper = Console.of(sys.stdout, os.environ)  # it may have got another size
            try:
                sight = _look(rest, roles, sight)
            except RestError as error:
                sight = replace(sight, trouble=str(error))


def _look(rest: Rest, roles: Collection[str], last: Sight | None) -> Sight:
    ensemble = UntrustedJson(rest.get("/v1/status").document).doc("ensemble")
    if last is not None and ensemble.text("digest") == last.digest:
        return replace(last, trouble="")
    document = rest.get("/v1/pods").document
    found = document.get("pods")
    pods = matching(found if isinstance(found, list) else [], roles)
    return Sight(UntrustedJson(document).text("digest"), tuple(pods))


def _lines(sight: Sight, paper: Console) -> list[str]:
    head = f"{counted(len(sight.pods), 'pod')}, digest {escaped(sight.digest)}"
    lines = [paper.paint(line, "head") for line in paper.wrap(head)]
    for line in sight.trouble.splitlines():
        lines += [paper.paint(part, "bad") for part in paper.wrap(line, "  ")]
    return [*lines, "", *table([UntrustedJson.of(pod) for pod in sight.pods], paper)]


def _print(sight: Sight, *, as_json: bool) -> None:
    if sight.trouble:
        say(sight.trouble)
    elif as_json:
        pods = list(sight.pods)
        print(escaped_json({"pods": pods, "digest": sight.digest}), flush=True)
    else:
        print("\n".join([*_lines(sight, Console()), ""]), flush=True)


def _draw(lines: Sequence[str], height: int) -> None:
    if len(lines) > height:
        hidden = len(lines) - height + 1
        lines = [*lines[: height - 1], f"... and {counted(hidden, 'line')} more"]
    sys.stdout.write(_HOME + "\n".join(f"{line}{_CLEAR_LINE}" for line in lines) + _CLEAR_BELOW)
    sys.stdout.flush()


@contextlib.contextmanager
def _second_screen() -> Iterator[None]:
    sys.stdout.write(_ENTER)
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
