"""The page of commands, made from the parsers. No Sphinx in here: a test reads it too."""

import re
from collections.abc import Iterable

from kontrol.cli.command import Command
from kontrol.cli.completion import Argument, Node, tree
from kontrol.cli.contents import ROWS
from kontrol.cli.parser import parser
from kontrol.settings.variables import VARIABLES

_MARKED = re.compile(r"(`[^`]+`|(?<![\w-])--?[a-z][\w-]*|KONTROL_[A-Z_]+)")
_VARIABLES = {variable.name for variable in VARIABLES}


def render() -> str:
    """Return reStructuredText: a section for each command, with all that it takes."""
    lines: list[str] = []
    for row, node in zip(ROWS, tree(parser()).children, strict=True):
        lines += [*_command(row.load(), node), ""]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Return text as reStructuredText: code in backticks, options and variables are marked."""
    return "".join(_mark(part) for part in _MARKED.split(text))


def _mark(part: str) -> str:
    if part in _VARIABLES:
        return f":envvar:`{part}`"
    if _MARKED.fullmatch(part):
        return f"``{part.strip('`')}``"
    return re.sub(r"([\\*|_`])", r"\\\1", part)


def _command(command: Command, node: Node) -> Iterable[str]:
    title = f"``{' '.join(node.words)}``"
    yield from (f".. _command-{node.words[1]}:", "", title, "-" * len(title), "")
    yield from (escape(f"{node.help[0].upper()}{node.help[1:]}."), "")
    yield from (".. code-block:: console", "", f"   $ {command.example}", "")
    for below in node.walk():
        if below is not node:
            yield from (f"``{' '.join(below.words)}``: {escape(below.help)}.", "")
        yield from (f".. program:: {' '.join(below.words)}", "")
        for argument in below.arguments:
            yield from _argument(argument)
    yield from (f"{status}: {escape(text)}." for status, text in _statuses(command.statuses))


def _argument(argument: Argument) -> Iterable[str]:
    if "--help" in argument.flags:
        return
    value = f" {argument.value}" if argument.value else ""
    names = ", ".join(f"{flag}{value}" for flag in argument.flags) or argument.value
    yield from (f".. option:: {names}", "", f"   {escape(argument.help)}", "")


def _statuses(text: str) -> Iterable[tuple[str, str]]:
    """Yield the exit statuses of a command's own."""
    for line in text.splitlines():
        found = re.match(r"  ([\d, ]+?)  (.+)", line)
        if found:
            yield f"\n- Exit status {found[1]}", found[2]
