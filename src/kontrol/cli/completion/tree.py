"""What can be typed, as a tree made from the parsers: completion and the documentation read it."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kontrol.cli.command import Command


@dataclass(frozen=True, slots=True)
class Argument:
    """An option with its spellings, or a positional word without any.

    `value` is how its value is called, empty if it takes none; `path`: it names a file or folder.
    """

    flags: tuple[str, ...]
    value: str
    help: str
    choices: tuple[str, ...]
    path: bool
    required: bool


@dataclass(frozen=True, slots=True)
class Node:
    """A command: its words from the program's name on, what it takes, and its own commands."""

    words: tuple[str, ...]
    help: str
    parser: argparse.ArgumentParser
    arguments: tuple[Argument, ...]
    children: "tuple[Node, ...]"

    def walk(self) -> "Iterator[Node]":
        """Yield this one and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def tree(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ("kontrol",), text: str = ""
) -> Node:
    """Return what a parser takes, or the parser that its command has of its own."""
    command: Command | None = parser.get_default("command")
    if command is not None and command.parser is not None and len(words) == 2:
        parser = command.parser()
    arguments: list[Argument] = []
    children: list[Node] = []
    for action in parser._actions:  # noqa: SLF001  # argparse has no public way to tell
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001  # the same
            helps = {row.dest: row.help or "" for row in action._choices_actions}  # noqa: SLF001
            children += [
                tree(sub, (*words, name), helps.get(name, ""))
                for name, sub in action.choices.items()
            ]
        elif action.help is not argparse.SUPPRESS:
            arguments.append(_argument(parser, action))
    return Node(words, text, parser, tuple(arguments), tuple(children))


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> Argument:
    choices = tuple(map(str, action.choices or ()))
    value = ""
    if action.nargs != 0:
        fallback = "|".join(choices) or action.dest
        named = action.metavar or (fallback.upper() if action.option_strings else fallback)
        value = named if isinstance(named, str) else " ".join(named)
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return Argument(
        tuple(action.option_strings),
        value,
        text,
        choices,
        path=action.type is Path,
        required=action.required and action.nargs not in ("?", "*"),
    )
