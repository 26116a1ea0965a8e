"""The allow-list: named commands with patterns for their arguments. No other command runs.

A JSON file, `KONTROL_INVOKE_ALLOW`:

    {"restart": {"argv": ["supervisorctl", "restart", "{1}"], "args": ["redis|sentinel"]},
     "uptime":  {"argv": ["uptime"]}}

A caller requests `restart redis`. Each argument replaces `{1}`, `{2}`... in `argv`; no shell reads
it. It must match its pattern as a whole. That is checked by the process that would execute the
command, in bounded time, since a pattern with many ways to match would block the agent
(docs/decisions/0106). The file is read again for every call, so no change is missed. While its
content is invalid no command runs, so that a command which its author wanted to remove does not
stay (docs/decisions/0101).
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kontrol.agent.request import MAX_SECONDS, CommandRequest
from kontrol.ensemble.canonical import JSON, NotJSON, parse
from kontrol.rpc.errors import Refused

MAX_FILE = 256 * 1024
"""Bytes of the file."""

MAX_ARGUMENT = 4096
"""Characters of an argument, and of a line that is split into words."""

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")
_PLACE = re.compile(r"\{([1-9][0-9]?)\}")
_DEPTH = 8
_MEMBERS = ("argv", "args", "stdin", "timeout")


class AllowListError(ValueError):
    """The allow-list cannot be used; the message names the file, the place and the fix."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """A command: its words, a pattern for each argument, and whether the caller may send stdin."""

    argv: tuple[str, ...]
    args: tuple[str, ...]
    stdin: bool
    timeout: float | None

    def fill(self, name: str, arguments: Sequence[str]) -> tuple[str, ...]:
        """Return the words to execute, if the arguments match `args`. Raises `Refused`."""
        if len(arguments) != len(self.args):
            raise Refused(
                "Forbidden", f"{name!r} takes {len(self.args)} arguments, got {len(arguments)}"
            )
        for number, argument in enumerate(arguments, 1):
            if len(argument) > MAX_ARGUMENT:
                raise Refused(
                    "Forbidden",
                    f"argument {number} of {name!r} has {len(argument)} characters; expected at"
                    f" most {MAX_ARGUMENT}",
                )
        return tuple(
            _PLACE.sub(lambda place: arguments[int(place[1]) - 1], word) for word in self.argv
        )


class AllowList:
    """The file at `path`. Raises `AllowListError` if it cannot be used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = b""
        self._commands: Mapping[str, Allowed] = {}
        self._read()

    def permit(self, request: CommandRequest) -> CommandRequest:
        """Return the request to run, as the file is now. Raises `Refused`.

        Its `checks` have not been made yet.
        """
        try:
            self._read()
        except AllowListError as error:
            raise Refused(
                "Forbidden", f"no command may run: KONTROL_INVOKE_ALLOW: {error}"
            ) from None
        name, *arguments = _words(request)
        allowed = self._commands.get(name)
        if allowed is None:
            raise Refused(
                "Forbidden",
                f"{name!r:.80} is not allowed here; allowed are"
                f" {', '.join(sorted(self._commands)) or 'none'} (KONTROL_INVOKE_ALLOW)",
            )
        if any(variable != "INPUT" for variable in request.env):
            raise Refused("Forbidden", "an allowed command takes no `env`: leave it out")
        if request.stdin and not allowed.stdin:
            raise Refused("Forbidden", f"{name!r} takes no `stdin`: leave it out")
        limits = [t for t in (request.timeout, allowed.timeout) if t is not None]
        return replace(
            request,
            argv=allowed.fill(name, arguments),
            cmd=None,
            timeout=min(limits, default=None),
            checks=tuple(zip(allowed.args, arguments, strict=True)),
        )

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_FILE + 1)
        except OSError as error:
            raise AllowListError(f"{self._path}: {error.strerror}: name a readable file") from None
        if content != self._content:
            self._content = b""  # while it is invalid, each call parses it again
            try:
                self._commands = parse_allow_list(content)
            except AllowListError as error:
                raise AllowListError(f"{self._path}: {error}") from None
            self._content = content


def _words(request: CommandRequest) -> tuple[str, ...]:
    """Return the name and the arguments; a line is split as a shell would."""
    if request.cmd is None:
        return request.argv
    if len(request.cmd) > MAX_ARGUMENT:
        raise Refused(
            "Forbidden", f"cmd is over {MAX_ARGUMENT} characters: name an allowed command"
        )
    try:
        words = tuple(shlex.split(request.cmd))
    except ValueError as error:
        raise Refused("Forbidden", f"cmd cannot be split into words: {error}") from None
    if not words:
        raise Refused("Forbidden", "cmd is empty: name an allowed command")
    return words


def parse_allow_list(content: bytes) -> Mapping[str, Allowed]:
    """Return the commands by name. Raises `AllowListError`."""
    if len(content) > MAX_FILE:
        raise AllowListError(f"is over {MAX_FILE} bytes: shorten it")
    try:
        value = parse(content, depth=_DEPTH)
    except NotJSON as error:
        raise AllowListError(f"{error}: correct the JSON") from None
    if not isinstance(value, dict):
        raise AllowListError("is not a JSON object: expected {name: {argv, args}, ...}")
    return {name: _allowed(name, entry) for name, entry in value.items()}


def _allowed(name: str, entry: JSON) -> Allowed:
    if not _NAME.fullmatch(name):
        raise AllowListError(
            f"{name!r:.80} is not a name: expected up to 64 letters, digits, and (not first) . _ -"
        )
    if not isinstance(entry, dict):
        raise AllowListError(f"{name}: is {entry!r:.80}; expected an object with argv and args")
    for member in entry:
        if member not in _MEMBERS:
            raise AllowListError(
                f"{name}: unknown member {member!r:.80}; known are {', '.join(_MEMBERS)}"
            )
    argv = _strings(name, "argv", entry.get("argv"))
    if not argv or not argv[0] or _PLACE.search(argv[0]):
        raise AllowListError(f"{name}: argv must begin with a program, not with an argument")
    args = tuple(
        _pattern(name, number, text)
        for number, text in enumerate(_strings(name, "args", entry.get("args", [])), 1)
    )
    _check_places(name, argv, len(args))
    stdin, timeout = entry.get("stdin", False), entry.get("timeout")
    if not isinstance(stdin, bool):
        raise AllowListError(f"{name}: stdin is {stdin!r:.80}; expected true or false")
    if timeout is not None and (
        isinstance(timeout, bool)
        or not isinstance(timeout, int | float)
        or not 0 < timeout <= MAX_SECONDS
    ):
        raise AllowListError(
            f"{name}: timeout is {timeout!r:.80}; expected seconds, up to {MAX_SECONDS:g}"
        )
    return Allowed(argv, args, stdin, None if timeout is None else float(timeout))


def _strings(name: str, member: str, value: JSON) -> tuple[str, ...]:
    words = value if isinstance(value, list) else [None]
    strings = tuple(word for word in words if isinstance(word, str) and "\0" not in word)
    if len(strings) == len(words):
        return strings
    shown = "missing" if value is None else f"{value!r:.80}"
    raise AllowListError(f"{name}: {member} is {shown}; expected a list of strings")


def _pattern(name: str, number: int, text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise AllowListError(
            f"{name}: pattern {number}, {text!r:.80}, is not a regular expression: {error}: "
            "correct it (in JSON, a backslash is written twice)"
        ) from None
    return text


def _check_places(name: str, argv: Sequence[str], arguments: int) -> None:
    places = {int(place[1]) for word in argv for place in _PLACE.finditer(word)}
    for number in sorted(places.symmetric_difference(range(1, arguments + 1))):
        if number > arguments:
            raise AllowListError(f"{name}: {{{number}}} has no pattern: add one to args")
        raise AllowListError(f"{name}: argument {number} is nowhere in argv: add {{{number}}}")
