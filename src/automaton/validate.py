"""Turns a manifest's tree into a `Manifest`, or reports all its problems.

Every problem is collected, with its place and its fix, so that one run of `automaton check` shows
all of them. An error can never work; a warning is probably a mistake.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

from automaton.manifest import (
    SHELL,
    Manifest,
    ManifestError,
    Node,
    Outcome,
    Probe,
    Problem,
    State,
)

TOP_KEYS = ("initial", "terminal", "states", "payload", "live")
REPORT_KEYS = ("file", "probe", "every", "timeout")
STATE_KEYS = ("tag", "shell", "next", "force", "timeout", "on", "retry", "env")
TAG = re.compile(r"[^\s*?\[\]\x00-\x20\x7f]{1,64}")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RESERVED = ("SOCKET", "INPUT")
MAX_SECONDS = 366 * 24 * 3600.0
MAX_RETRIES = 1_000_000
MIN_EVERY = 0.1
PROBE_SECONDS = 5.0
"""Seconds after which a probe is killed unless it has a `timeout`."""

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
    path: str,
    root: Node,
    argv: Mapping[str, tuple[str, ...]] | None = None,
    probes: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[Manifest, list[Problem]]:
    """Return the manifest and its warnings.

    `argv` gives the command of each state by tag, for manifests whose scripts are not `shell`;
    `probes` those of probes that are no scripts either, by `payload` or `live`. Raises
    `ManifestError` if there is any error.
    """
    return _Validator(path).manifest(root, argv, probes or {})


class _Validator:
    def __init__(self, path: str) -> None:
        self._path = path
        self._problems: list[Problem] = []

    def _say(
        self, node: Node, message: str, severity: Literal["error", "warning"] = "error"
    ) -> None:
        self._problems.append(Problem(node.line, node.column, message, severity))

    def manifest(
        self,
        root: Node,
        argv: Mapping[str, tuple[str, ...]] | None,
        probes: Mapping[str, tuple[str, ...]],
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
        payload, live, found = self._reports(top, probes)
        if initial in states and terminal in states:
            self._warn(initial, terminal, states, drafts)
        if any(problem.severity == "error" for problem in self._problems):
            raise ManifestError(self._path, self._problems)
        manifest = Manifest(initial, terminal, states, payload or None, live or None, found)
        return manifest, sorted(self._problems)

    def _reports(
        self, top: Mapping[str, Node], argv: Mapping[str, tuple[str, ...]]
    ) -> tuple[str | None, str | None, dict[str, Probe]]:
        """Return the files of `payload` and `live`, and their probes."""
        files: dict[str, str | None] = {"payload": None, "live": None}
        probes: dict[str, Probe] = {}
        for name in files.keys() & top.keys():
            node = top[name]
            if node.kind == "map":
                fields = self._map(node, f"{name!r}", REPORT_KEYS)
                files[name] = self._file(name, node, fields)
                probe = self._probe(name, node, fields, argv.get(name))
                probes |= {} if probe is None else {name: probe}
            elif name == "payload":
                expected = "the path of a file, or a map with 'file'"
                files[name] = self._text(node, f"{name!r}", expected)
            else:
                self._say(node, f"{name!r} is {_describe(node)}; expected a map, as in {_LIVE}")
        payload, live = files["payload"], files["live"]
        if payload and live and Path(payload) == Path(live):
            self._say(top["live"], f"'live' and 'payload' have one file, {_short(live)}; name two")
        return payload, live, probes

    def _file(self, name: str, node: Node, fields: Mapping[str, Node]) -> str | None:
        if "file" not in fields:
            self._say(node, f"'file' is missing in {name!r}; name the file to be written")
            return None
        file = self._text(fields["file"], f"'{name}: file'", "the path of a file")
        if file is not None and (not file.strip() or "\0" in file):
            self._say(fields["file"], f"'{name}: file' is {_short(file)}; expected a path")
        return file

    def _probe(
        self,
        name: str,
        node: Node,
        fields: Mapping[str, Node],
        argv: tuple[str, ...] | None,
    ) -> Probe | None:
        if "probe" not in fields:
            if name == "live":
                self._say(node, f"'probe' is missing in 'live'; expected a script, as in {_LIVE}")
            for key in [key for key in ("every", "timeout") if key in fields]:
                self._say(fields[key], f"{key!r} in {name!r} is of a 'probe', which is missing")
            return None
        script = self._text(fields["probe"], f"'{name}: probe'", "a script as text")
        if script is not None and (not script.strip() or "\0" in script):
            self._say(fields["probe"], f"'{name}: probe' is {_short(script)}; expected a script")
        if "every" not in fields:
            self._say(node, f"'every' is missing in {name!r}; say how often it runs: 'every: 5'")
        expected = f"a number of seconds, at least {MIN_EVERY:g}"
        every = self._scalar(fields.get("every"), _every, f"'{name}: every'", expected)
        what = f"'{name}: timeout'"
        limit = self._scalar(fields.get("timeout"), _seconds, what, "a number of seconds above 0")
        if every is None or not script:
            return None
        command = argv or (SHELL, "-c", script)
        return Probe(command, every, limit or PROBE_SECONDS)

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


_LIVE = "'live: {file: live.json, probe: ./lag, every: 1}'"
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


def _every(node: Node) -> float | None:
    value = _seconds(node)
    return value if value is not None and value >= MIN_EVERY else None


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
