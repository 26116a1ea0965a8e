"""Requests of `invoke` and `exec`, from JSON text to values, and their fence. Pure.

`exec` is strict: it refuses a member that it does not know, by name. `invoke` accepts what the
original accepted: any object with `cmd`. The command finds the whole text in `$INPUT`, so the other
members are up to it; only a complete `tier`, `term` and `run` mean the same as for `exec`.

The fence: for each tier, only commands of the highest term seen may run. A leader that was replaced
may not know it yet, or may have left commands running. So a call made from within a callback
carries its tier and term. A term below the highest seen is refused, and before a command of a
higher term starts, those of lower terms are ended (`kontrol.agent.executor`).

Invariant: the highest term of a tier never falls. It is kept in memory: a restart of the agent ends
all its commands, and forgets it.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

from kontrol.ensemble.canonical import JSON, NotJSON, parse
from kontrol.rpc.errors import Refused

MAX_SECONDS = 86_400.0

_DEPTH = 32
_MAX_TIER = 512  # a namespace and an app, each up to 253
_LAST = 2**63 - 1  # the greatest revision of etcd, which terms are
_MEMBERS = ("argv", "cmd", "env", "stdin", "stdin64", "timeout", "tier", "term", "run")


class BadRequest(ValueError):
    """The request is invalid; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class FencingToken:
    """The callback that a call is made for: its tier ("namespace/app"), its term, its run."""

    tier: str
    term: int
    run: int


@dataclass(frozen=True, slots=True)
class CommandRequest:
    """`argv`, or `cmd`, a line for the shell. `timeout` is seconds; None: no limit.

    `checks` are patterns of the allow-list, each with the argument that must match it.
    """

    argv: tuple[str, ...] = ()
    cmd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    timeout: float | None = None
    fencing_token: FencingToken | None = None
    checks: tuple[tuple[str, str], ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """What to execute."""
        return self.argv if self.cmd is None else ("/bin/sh", "-c", self.cmd)


def read_invoke(raw: object, timeout: float) -> CommandRequest:
    """Return what the argument of `invoke` asks for, bounded by `timeout` seconds.

    Raises `BadRequest` if it is no JSON object with `cmd`.
    """
    try:
        value = parse(raw, depth=_DEPTH) if isinstance(raw, str | bytes) else None
    except NotJSON as error:
        raise BadRequest(f"the argument is not JSON: {error}") from None
    cmd = value.get("cmd") if isinstance(value, dict) else None
    if not isinstance(raw, str | bytes) or not isinstance(value, dict) or not isinstance(cmd, str):
        raise BadRequest("the argument is not the text of a JSON object with `cmd`")
    text = raw if isinstance(raw, str) else raw.decode("utf-8")  # `parse` has checked it
    try:
        token = _fencing_token(value)
    except BadRequest:
        token = None
    return CommandRequest(cmd=cmd, env={"INPUT": text}, timeout=timeout, fencing_token=token)


def read_exec(raw: object) -> CommandRequest:
    """Return what the argument of `exec` asks for. Raises `BadRequest`."""
    if not isinstance(raw, str | bytes):
        raise BadRequest(
            f"the argument is {type(raw).__name__}; expected the text of a JSON object"
        )
    try:
        value = parse(raw, depth=_DEPTH)
    except NotJSON as error:
        raise BadRequest(f"the argument is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRequest(f"the argument is {_shown(value)}; expected a JSON object")
    for name in value:
        if name not in _MEMBERS:
            raise BadRequest(f"unknown member {name!r:.80}; known are {', '.join(_MEMBERS)}")
    argv, cmd = _argv(value.get("argv")), _cmd(value.get("cmd"))
    if (cmd is None) == (not argv):
        raise BadRequest("expected one of `argv`, a list of words, and `cmd`, a line for the shell")
    return CommandRequest(
        argv,
        cmd,
        _env(value.get("env")),
        _stdin(value.get("stdin"), value.get("stdin64")),
        _timeout(value.get("timeout")),
        _fencing_token(value),
    )


def _argv(value: JSON) -> tuple[str, ...]:
    if value is None:
        return ()
    words = value if isinstance(value, list) else []
    argv = tuple(word for word in words if isinstance(word, str))
    if not argv or len(argv) != len(words) or not argv[0]:
        raise BadRequest(f"argv is {_shown(value)}; expected a list of strings, the program first")
    return argv


def _cmd(value: JSON) -> str | None:
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    raise BadRequest(f"cmd is {_shown(value)}; expected a line for the shell")


def _env(value: JSON) -> Mapping[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"env is {_shown(value)}; expected an object of strings")
    env: dict[str, str] = {}
    for name, text in value.items():
        if not name or "=" in name or "\0" in name or not isinstance(text, str) or "\0" in text:
            raise BadRequest(f"env has {name!r:.80}: {_shown(text)}; expected a name and a string")
        env[name] = text
    return env


def _stdin(value: JSON, coded: JSON) -> bytes:
    if coded is None and (value is None or isinstance(value, str)):
        return (value or "").encode("utf-8")
    if value is not None and coded is not None:
        raise BadRequest("there are stdin and stdin64; expected one of them")
    if coded is None:
        raise BadRequest(f"stdin is {_shown(value)}; expected a string")
    try:
        return base64.b64decode(coded if isinstance(coded, str) else "?", validate=True)
    except ValueError:
        raise BadRequest(f"stdin64 is {_shown(coded)}; expected a string of base64") from None


def _timeout(value: JSON) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_SECONDS:
        return float(value)
    raise BadRequest(
        f"timeout is {_shown(value)}; expected seconds, over 0 and up to {MAX_SECONDS:g}"
    )


def _fencing_token(value: Mapping[str, JSON]) -> FencingToken | None:
    tier, term, run = (value.get(name) for name in ("tier", "term", "run"))
    if tier is None and term is None and run is None:
        return None
    if not isinstance(tier, str) or not 0 < len(tier) <= _MAX_TIER or not tier.isprintable():
        raise BadRequest(f"tier is {_shown(tier)}; expected namespace/app, with a term and a run")
    return FencingToken(tier, _number("term", term), _number("run", run))


def _number(name: str, value: JSON) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LAST:
        return value
    raise BadRequest(f"{name} is {_shown(value)}; expected a whole number, with a tier beside it")


def _shown(value: JSON) -> str:
    if value is None:
        return "missing"
    return f"{value!r:.80}"


MOST_TIERS = 1024
"""Tiers that are remembered. None is forgotten, since that would open its fence."""


class Fence:
    """The highest term of each tier."""

    def __init__(self) -> None:
        self._highest: dict[str, int] = {}

    def admit(self, token: FencingToken) -> None:
        """Remember the term, or raise `Refused` if a higher one has been seen."""
        highest = self._highest.get(token.tier)
        if highest is not None and token.term < highest:
            raise Refused(
                "Fenced",
                f"term {token.term} of tier {token.tier!r} is over: term {highest} has called"
                " here; end this callback, its leader has been replaced",
            )
        if highest is None and len(self._highest) >= MOST_TIERS:
            raise Refused(
                "Busy",
                f"tier {token.tier!r:.80} would be the {MOST_TIERS + 1}th here: restart the agent"
                " to forget them; set KONTROL_KEYS if so many are not yours",
            )
        self._highest[token.tier] = token.term
