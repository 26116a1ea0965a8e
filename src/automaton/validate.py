"""Turns a manifest's tree into a `Manifest`, or reports all its problems.

Every problem is collected, with its place and its fix, so that one run of `automaton check` shows
all of them. An error can never work; a warning is probably a mistake.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Literal, TypeVar

from automaton.manifest import SHELL, Manifest, ManifestError, Node, Outcome, Problem, State

TOP_KEYS = ("initial", "terminal", "states", "payload")
STATE_KEYS = ("tag", "shell", "next", "force", "timeout", "on", "retry", "env")
TAG = re.compile(r"[^\s*?\[\]\x00-\x20\x7f]{1,64}")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RESERVED = ("SOCKET", "INPUT")
MAX_SECONDS = 366 * 24 * 3600.0
MAX_RETRIES = 1_000_000

T = TypeVar("T")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that was probably meant, or the list of them."""
    import difflib  # costs memory, and a valid manifest does not need it

    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(words[:12]) + (", ..." if len(words) > 12 else "")
    return f"known: {shown}" if words else "there are none"


def validate(
    path: str, root: Node, argv: Mapping[str, tuple[str, ...]] | None = None
) -> tuple[Manifest, list[Problem]]:
    """Return the manifest and its warnings.

    `argv` gives the command of each state by tag, for manifests whose scripts are not `shell`.
    Raises `ManifestError` if there is any error.
    """
    return _Validator(path).manifest(root, argv)


class _Validator:
    def __init__(self, path: str) -> None:
        self._path = path
        self._problems: list[Problem] = []

    def _say(
        self, node: Node, message: str, severity: Literal["error", "warning"] = "error"
    ) -> None:
        self._problems.append(Problem(node.line, node.column, message, severity))

    def manifest(
        self, root: Node, argv: Mapping[str, tuple[str, ...]] | None
    ) -> tuple[Manifest, list[Problem]]:
        top = self._map(root, "a manifest", TOP_KEYS, unknown="warning")
        for key in ("initial", "terminal", "states"):
            if key not in top and root.kind == "map":
                self._say(root, f"{key!r} is missing; {_FIXES[key]}")
        drafts: dict[str, tuple[Node, Mapping[str, Node]]] = {}
        for item in self._items(top.get("states"), "'states'", "a list of states"):
            fields = self._map(item, "a state", STATE_KEYS)
            tag = self._tag(item, fields)
            if tag in drafts:
                first = drafts[tag][0].line
                self._say(fields["tag"], f"state {tag!r} is already on line {first}; rename one")
            elif tag:
                drafts[tag] = (item, fields)
        if "states" in top and top["states"].kind == "seq" and not top["states"].items:
            self._say(top["states"], "'states' is empty; give at least one state")
        states = {tag: self._state(tag, fields, drafts) for tag, (_, fields) in drafts.items()}
        if argv is not None:
            states = {tag: replace(state, argv=argv[tag]) for tag, state in states.items()}
        initial = self._named(top.get("initial"), "'initial'", drafts)
        terminal = self._named(top.get("terminal"), "'terminal'", drafts)
        payload = self._text(top.get("payload"), "'payload'", "the path of a file")
        if initial in states and terminal in states:
            self._warn(initial, terminal, states, drafts)
        if any(problem.severity == "error" for problem in self._problems):
            raise ManifestError(self._path, self._problems)
        return Manifest(initial, terminal, states, payload or None), sorted(self._problems)

    def _state(self, tag: str, fields: Mapping[str, Node], tags: Iterable[str]) -> State:
        shell = self._text(fields.get("shell"), "'shell'", "a script as text")
        if shell and "\0" in shell:
            self._say(fields["shell"], "'shell' has a NUL; a script is text, take it out")
        return State(
            tag=tag,
            argv=(SHELL, "-c", shell) if shell and shell.strip() else (),
            reach=self._reach(fields.get("next"), tags),
            force=self._scalar(fields.get("force"), _flag, "'force'", "true or false") or False,
            timeout=self._scalar(
                fields.get("timeout"), _seconds, "'timeout'", "a number of seconds above 0"
            ),
            on=self._on(fields.get("on"), tags),
            retry=self._scalar(
                fields.get("retry"), _count, "'retry'", f"a whole number from 0 to {MAX_RETRIES}"
            )
            or 0,
            env=self._env(fields.get("env")),
        )

    def _tag(self, item: Node, fields: Mapping[str, Node]) -> str:
        node = fields.get("tag")
        if node is None:
            if item.kind == "map":
                self._say(item, "'tag' is missing; name the state, as in 'tag: start'")
            return ""
        tag = self._text(node, "'tag'", "a name") or ""
        if node.kind not in ("seq", "map") and not TAG.fullmatch(tag):
            self._say(
                node,
                f"'tag' is {_short(tag)}; a tag has 1 to 64 characters, no space and none of *?[]",
            )
            return ""
        return tag

    def _reach(self, node: Node | None, tags: Iterable[str]) -> frozenset[str]:
        reach: set[str] = set()
        for item in self._items(node, "'next'", "a list of tags or glob patterns"):
            pattern = self._text(item, "an entry of 'next'", "a tag or a glob pattern")
            if pattern is None:
                continue
            matched = [tag for tag in tags if fnmatch.fnmatchcase(tag, pattern)]
            if not matched and any(character in pattern for character in "*?["):
                self._say(item, f"'next' pattern {_short(pattern)} matches no state", "warning")
            elif not matched:
                self._say(
                    item, f"'next' names no state: {_short(pattern)}; {nearest(pattern, tags)}"
                )
            reach.update(matched)
        return frozenset(reach)

    def _on(self, node: Node | None, tags: Iterable[str]) -> Mapping[Outcome, str]:
        entries = (
            self._map(node, "'on'", tuple(str(outcome) for outcome in Outcome)) if node else {}
        )
        found = {
            Outcome(key): self._named(tag, f"'on: {key}'", tags) for key, tag in entries.items()
        }
        return {outcome: tag for outcome, tag in found.items() if tag}

    def _env(self, node: Node | None) -> Mapping[str, str]:
        env: dict[str, str] = {}
        for name, (key, value) in self._entries(node, "'env'").items():
            text = self._text(value, f"'env: {name}'", "text")
            if not NAME.fullmatch(name):
                self._say(key, f"'env' name {_short(name)}; use letters, digits and _")
            elif name in RESERVED:
                self._say(key, f"'env' sets {name}, which automaton sets itself; rename it")
            elif text is not None and "\0" in text:
                self._say(value, f"'env: {name}' has a NUL; take it out")
            elif text is not None:
                env[name] = text
        return env

    def _warn(
        self,
        initial: str,
        terminal: str,
        states: Mapping[str, State],
        drafts: Mapping[str, tuple[Node, Mapping[str, Node]]],
    ) -> None:
        seen, todo = {initial, terminal}, [initial] if initial != terminal else []
        while todo:
            state = states[todo.pop()]
            fresh = (state.reach | set(state.on.values())) - seen
            seen |= fresh
            todo += sorted(fresh - {terminal})
        for tag, (item, fields) in drafts.items():
            where = fields.get("tag", item)
            if tag not in seen:
                self._say(
                    where,
                    f"state {tag!r} is unreachable from {initial!r}; name it in a 'next'",
                    "warning",
                )
            ways = [fields[key] for key in ("next", "on") if key in fields]
            if tag != terminal and not any(way.items or way.entries for way in ways):
                self._say(
                    where,
                    f"state {tag!r} is a dead end: only {terminal!r} can follow; give it a 'next'",
                    "warning",
                )
        if initial == terminal:
            self._say(
                drafts[initial][0],
                f"{initial!r} is initial and terminal: nothing leaves it; add a state",
                "warning",
            )

    # The leaves: each reports what it found, what was expected, and where.

    def _map(
        self,
        node: Node,
        what: str,
        known: tuple[str, ...],
        unknown: Literal["error", "warning"] = "error",
    ) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for name, (key, value) in self._entries(node, what).items():
            if name in known:
                found[name] = value
            else:
                self._say(
                    key, f"unknown key {_short(name)} in {what}; {nearest(name, known)}", unknown
                )
        return found

    def _entries(self, node: Node | None, what: str) -> dict[str, tuple[Node, Node]]:
        if node is None:
            return {}
        if node.kind != "map":
            self._say(node, f"{what} is {_describe(node)}; expected keys with values")
            return {}
        found: dict[str, tuple[Node, Node]] = {}
        for key, value in node.entries:
            if key.kind in ("seq", "map"):
                self._say(key, f"a key of {what} is {_describe(key)}; expected a name")
            elif key.text in found:
                first = found[key.text][0].line
                self._say(key, f"key {key.text!r} is already on line {first}; drop one")
            else:
                found[key.text] = (key, value)
        return found

    def _items(self, node: Node | None, what: str, expected: str) -> tuple[Node, ...]:
        if node is None:
            return ()
        if node.kind != "seq":
            self._say(node, f"{what} is {_describe(node)}; expected {expected}, as in [a, b]")
        return node.items

    def _text(self, node: Node | None, what: str, expected: str) -> str | None:
        """Return a scalar as it was written: `yes`, `1` and `2026-01-01` are valid tags."""
        return self._scalar(node, lambda scalar: scalar.text, what, expected)

    def _scalar(
        self, node: Node | None, read: Callable[[Node], T | None], what: str, expected: str
    ) -> T | None:
        if node is None:
            return None
        value = None if node.kind in ("seq", "map") else read(node)
        if value is None:
            self._say(node, f"{what} is {_describe(node)}; expected {expected}")
        return value

    def _named(self, node: Node | None, what: str, tags: Iterable[str]) -> str:
        tag = self._text(node, what, "the tag of a state")
        if node is None or tag is None:
            return ""
        if tag not in tags:
            self._say(node, f"{what} names no state: {_short(tag)}; {nearest(tag, tags)}")
            return ""
        return tag


_FIXES = {
    "initial": "name the state to start in, as in 'initial: start'",
    "terminal": "name the state to end in, as in 'terminal: stop'",
    "states": "list the states, as in 'states: [{tag: start, shell: echo hello}]'",
}


def _flag(node: Node) -> bool | None:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    return words.get(node.text.lower()) if node.kind == "bool" else None


def _seconds(node: Node) -> float | None:
    value = _number(node)
    return value if value is not None and 0 < value <= MAX_SECONDS else None


def _count(node: Node) -> int | None:
    value = _number(node) if node.kind == "int" else None
    return int(value) if value is not None and 0 <= value <= MAX_RETRIES else None


def _number(node: Node) -> float | None:
    if node.kind not in ("int", "float"):
        return None
    try:
        return float(node.text)
    except ValueError:
        return None


def _describe(node: Node) -> str:
    if node.kind in ("seq", "map"):
        return {"seq": "a list", "map": "a map"}[node.kind]
    return _short(node.text) if node.text else "empty"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
