"""Which pods a command is for: selectors and conditions over keepalive records. Pure."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kontrol.ensemble.canonical import JSON, NotJSON, canonical, parse
from kontrol.ensemble.numbers import whole

Record = Mapping[str, JSON]

_GLOB = "*?["
_DEPTH = 32


class NoMatch(Exception):
    """A selector, or all of them and the conditions together, match no pod."""


class BadSelection(ValueError):
    """What was given cannot select pods; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The union of `selectors` (none: every pod), less what a role or a condition leaves out.

    A selector is an id, a key, `#` and a number, or a glob of ids; `where` has a dotted path and
    a text each.
    """

    selectors: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    where: tuple[tuple[str, str], ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of records that the conditions look at."""
        return tuple(path.partition(".")[0] for path, _ in self.where)

    def choose(self, pods: Sequence[Record]) -> list[Record]:
        """Return the pods that match, in their order. Raises `NoMatch`.

        A selector that matches nothing is a mistake, not an empty part of a whole: then nothing is
        chosen at all.
        """
        for selector in self.selectors:
            if not any(is_named(pod, selector) for pod in pods):
                raise NoMatch(f"no pod has the id, key or number {selector!r} among {len(pods)}")
        chosen = [pod for pod in pods if self._matches(pod)]
        if not chosen:
            hint = ""
            if any(path.startswith("payload") for path, _ in self.where) and not any(
                "payload" in pod for pod in pods
            ):
                hint = ": masters tell payloads to holders of keys only (KONTROL_KEYS)"
            raise NoMatch(f"no pod matches, of {len(pods)}{hint}")
        return chosen

    def _matches(self, pod: Record) -> bool:
        named = not self.selectors or any(is_named(pod, one) for one in self.selectors)
        right = not self.roles or pod.get("role") in self.roles
        return named and right and all(has(pod, path, text) for path, text in self.where)


def is_named(pod: Record, selector: str) -> bool:
    """Tell whether a selector means this pod."""
    if selector.startswith("#"):
        return f"#{pod.get('seq')}" == selector
    if selector in (pod.get("id"), pod.get("key")):
        return True
    name = pod.get("id")
    glob = any(char in selector for char in _GLOB)
    return glob and isinstance(name, str) and fnmatch.fnmatchcase(name, selector)


def has(pod: Record, path: str, text: str) -> bool:
    """Tell whether the value at `path` is the string `text`, or what `text` says as JSON.

    A path is the names of members, parted by dots; in an array, numbers from 0.
    """
    value: JSON = dict(pod)
    for name in path.split("."):
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list):
            try:
                value = value[whole(name, 0, len(value) - 1)]
            except ValueError:
                return False
        else:
            return False
    if isinstance(value, str):
        return value == text
    try:
        return canonical(value) == canonical(parse(text, depth=_DEPTH))
    except NotJSON:
        return False


def condition(text: str) -> tuple[str, str]:
    """Part `payload.state=READY` into its path and its text. Raises `BadSelection`."""
    path, equals, wanted = text.partition("=")
    if not equals or not all(path.split(".")):
        raise BadSelection(f"{text!r}: expected a path and a value, as payload.state=READY")
    return path, wanted
