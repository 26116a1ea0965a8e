"""`kontrol completion`, which prints a completion script for a shell, and the tree of commands.

The tree is made from the parsers; the documentation is made from it too. Only what is fixed is
completed: words, options and files. Completing pods and runs would take a request to a master, and
the shell would hang while none answers.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kontrol.cli.command import DONE, Command


@dataclass(frozen=True, slots=True)
class Argument:
    """An option with its spellings, or a positional argument, which has none.

    `value` is the name of its value, empty if it takes none; `path`: it is a file or a folder.
    """

    flags: tuple[str, ...]
    value: str
    help: str
    choices: tuple[str, ...]
    path: bool
    required: bool


@dataclass(frozen=True, slots=True)
class Node:
    """A command: its words from `kontrol` on, its arguments, and its own subcommands."""

    words: tuple[str, ...]
    help: str
    parser: argparse.ArgumentParser
    arguments: tuple[Argument, ...]
    children: "tuple[Node, ...]"

    def walk(self) -> "Iterator[Node]":
        """Yield this node and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def tree(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ("kontrol",), text: str = ""
) -> Node:
    """Return the tree of a parser, or of the parser that its command brings itself."""
    command: Command | None = parser.get_default("command")
    if command is not None and command.parser is not None and len(words) == 2:
        parser = command.parser()
    arguments: list[Argument] = []
    children: list[Node] = []
    for action in parser._actions:  # noqa: SLF001  # argparse has no public way
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


def _completion(options: argparse.Namespace, _others: list[str]) -> int:
    from kontrol.cli.parser import parser

    print(_SHELLS[options.shell](tree(parser())), end="")
    return DONE


def _bash(root: Node) -> str:
    return f"""\
# Completion of kontrol for bash. Use it: source <(kontrol completion bash)
_kontrol() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} at=kontrol i words=
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$at ${{COMP_WORDS[i]}}" in
            {_commands(root)}) at="$at ${{COMP_WORDS[i]}}" ;;
        esac
    done
    case "$at $before" in
        {_with_values(root)}) return ;;
    esac
    case "$at" in
{_cases(root, lambda node: f'"{" ".join(node.words)}") words="{" ".join(_typed(node))}" ;;')}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _kontrol kontrol
"""


def _zsh(root: Node) -> str:
    def case(node: Node) -> str:
        words = " ".join(_quote(f"{w}:{text}" if text else w) for w, text in _described(node))
        return f'("{" ".join(node.words)}") list=({words}) ;;'

    return f"""\
#compdef kontrol
# Completion of kontrol for zsh. Use it: source <(kontrol completion zsh)
_kontrol() {{
    local at=kontrol word
    local -a list
    for word in "${{(@)words[2,CURRENT-1]}}"; do
        case "$at $word" in
            ({_commands(root)}) at="$at $word" ;;
        esac
    done
    case "$at ${{words[CURRENT-1]}}" in
        ({_with_values(root)}) _files; return ;;
    esac
    case "$at" in
{_cases(root, case)}
    esac
    _describe -o command list || _files
}}
compdef _kontrol kontrol
"""


def _fish(root: Node) -> str:
    lines = [
        "# Completion of kontrol for fish. Use it: kontrol completion fish | source",
        "complete -c kontrol -f",
    ]
    for node in root.walk():
        above = node.words[1:]
        here = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in above)
        names = " ".join(child.words[-1] for child in node.children)
        none = f"not __fish_seen_subcommand_from {names}" if names else ""
        when = "; and ".join(filter(None, (here, none)))
        for child in node.children:
            text = _quote(child.help)
            lines.append(f"complete -c kontrol -n {_quote(when)} -a {child.words[-1]} -d {text}")
        for argument in node.arguments:
            parts = [f"complete -c kontrol -n {_quote(when)}" if when else "complete -c kontrol"]
            for flag in argument.flags:
                letters = "-l" if flag.startswith("--") else "-s"
                parts.append(f"{letters} {flag.lstrip('-')}")
            if argument.choices:
                parts.append(f"-a {_quote(' '.join(argument.choices))}")
            if argument.flags and argument.value:
                parts.append("-r -F" if argument.path else "-x")
            elif not argument.flags and not argument.choices:
                if not argument.path:
                    continue
                parts.append("-F")
            lines.append(" ".join([*parts, f"-d {_quote(argument.help)}"]))
    return "\n".join(lines) + "\n"


_SHELLS: dict[str, "Callable[[Node], str]"] = {"bash": _bash, "zsh": _zsh, "fish": _fish}


def _commands(root: Node) -> str:
    """Return a shell pattern of all commands."""
    return "|".join(f'"{" ".join(node.words)}"' for node in root.walk() if node is not root)


def _with_values(root: Node) -> str:
    """Return a shell pattern of the options that take a value, which is completed as a file."""
    return "|".join(
        f'"{" ".join(node.words)} {flag}"'
        for node in root.walk()
        for argument in node.arguments
        if argument.value
        for flag in argument.flags
    )


def _cases(root: Node, case: "Callable[[Node], str]") -> str:
    return "\n".join(f"        {case(node)}" for node in root.walk())


def _typed(node: Node) -> Iterable[str]:
    return (word for word, _ in _described(node))


def _described(node: Node) -> Iterable[tuple[str, str]]:
    """Yield the words that can follow a command, each with its description."""
    for child in node.children:
        yield child.words[-1], child.help
    for argument in node.arguments:
        for word in argument.flags or argument.choices:
            yield word, argument.help


def _quote(text: str) -> str:
    """Quote for all three shells; an apostrophe becomes a typographic one."""
    return "'" + text.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}").replace("\n", " ") + "'"


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=tuple(_SHELLS), help="the shell")


COMMANDS = {
    "completion": Command(
        "source <(kontrol completion bash)",
        _completion,
        _configure,
    ),
}
