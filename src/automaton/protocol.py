"""The commands of the socket: from bytes to values. Pure.

    GOTO state [input]    WAIT state [input]    SET NAME [value]    STATE    STATUS    DIE

One whitespace character ends the name of the state. Everything after it is the input, verbatim,
including newlines, so that an input cannot contain a second command. Bytes that are not UTF-8 are
kept as surrogate escapes, and reach the script unchanged.
"""

import re
from dataclasses import dataclass
from typing import Literal

from automaton.validate import RESERVED, nearest

MAX_INPUT = 96 * 1024
"""Bytes of an input or a value. Linux limits one environment string to 128 KiB (MAX_ARG_STRLEN),
and an input that a script quotes and sends on with `socat` must still fit."""
MAX_COMMAND = MAX_INPUT + 4096
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")


@dataclass(frozen=True, slots=True)
class Move:
    """`GOTO` or `WAIT`: go to a state."""

    verb: Literal["GOTO", "WAIT"]
    tag: str
    input: str


@dataclass(frozen=True, slots=True)
class Set:
    """`SET`: a variable for every script that starts from now on."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Immediate:
    """`STATE`, `STATUS` or `DIE`: no arguments, answered immediately."""

    verb: Literal["STATE", "STATUS", "DIE"]


Command = Move | Set | Immediate
_VERBS = ("GOTO", "WAIT", "SET", "STATE", "STATUS", "DIE")


class CommandError(Exception):
    """A command that is invalid; the text is the reason, on one line."""


def decode(raw: bytes) -> str:
    """Decode UTF-8; other bytes become surrogate escapes."""
    return raw.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """Undo `decode`."""
    return text.encode("utf-8", "surrogateescape")


def too_long(size: int) -> str:
    """Return the message that a command or input is over the limit."""
    return f"{size} bytes of input; at most {MAX_INPUT}: put it in a file and send its name"


def parse(raw: bytes) -> Command:
    """Read one command. Raises `CommandError`."""
    raw = raw.rstrip(b"\r\n")
    if b"\0" in raw:
        raise CommandError("the command has a NUL byte, which no environment can carry; encode it")
    verb, rest = _word(decode(raw))
    match verb:
        case "STATE" | "STATUS" | "DIE":
            if rest.strip():
                raise CommandError(f"{verb} takes no argument; got {rest[:40]!r}")
            return Immediate(verb)
        case "GOTO" | "WAIT":
            tag, value = _split(rest)
            if not tag:
                raise CommandError(f"{verb} needs a state: {verb} state [input]")
            return Move(verb, tag, value)
        case "SET":
            return _set(*_split(rest))
        case "":
            raise CommandError(f"no command; send one of {', '.join(_VERBS)}")
        case _:
            verb = verb[:40]
            raise CommandError(f"unknown command {verb!r}; {nearest(verb.upper(), _VERBS)}")


def _set(name: str, value: str) -> Set:
    if not _NAME.fullmatch(name):
        raise CommandError(f"{name[:40]!r} is no name: SET NAME value, of letters, digits and _")
    if name in RESERVED:
        raise CommandError(f"{name} is set by automaton itself; choose another name")
    return Set(name, value)


def _split(rest: str) -> tuple[str, str]:
    """Split off the first word; the input may have at most `MAX_INPUT` bytes."""
    word, value = _word(rest.lstrip(" \t"))
    if (size := len(encode(value))) > MAX_INPUT:
        raise CommandError(too_long(size))
    return word, value


def _word(text: str) -> tuple[str, str]:
    word, *more = re.split(r"[ \t\r\n]", text, maxsplit=1)
    return word, more[0] if more else ""
