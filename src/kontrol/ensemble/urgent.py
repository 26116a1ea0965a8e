"""Urgent changes: those for which the callback does not wait for the damper. Pure.

A change is urgent by its kind (a pod that joined, left, was lost or changed), or because it changed
a value of the pod's payload at one of some paths. It is judged against the last acknowledged run.
So with each pod of that run a *mark* of these values is kept, and no leader has to see the change
come.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kontrol.ensemble.canonical import JSON, canonical
from kontrol.ensemble.ensemble import Changes, Member
from kontrol.ensemble.pod import Pod

KINDS = ("joined", "left", "lost", "changed")
MARK = re.compile(r"[0-9a-f]{16}\Z")

_PAYLOAD = "payload."
_INDEX = re.compile(r"(0|[1-9][0-9]{0,8})\Z")


@dataclass(frozen=True, slots=True)
class Urgent:
    """What is urgent: `kinds` of changes, and `paths` in the payload; by default nothing.

    A path is the names of members, or in an array numbers from 0, from the outside in.
    """

    kinds: frozenset[str] = frozenset()
    paths: tuple[tuple[str, ...], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.kinds or self.paths)

    def mark(self, pod: Pod) -> str:
        """Return what changes with the pod's values at the paths; empty if there are no paths."""
        if not self.paths:
            return ""
        from hashlib import md5  # only masters hash; the settings import this module everywhere

        found: JSON = [[list(path), *_at(pod.payload, path)] for path in self.paths]
        return md5(canonical(found), usedforsecurity=False).hexdigest()[:16]

    def among(self, changes: Changes, applied: Iterable[Member], pods: Mapping[int, Pod]) -> bool:
        """Tell whether one of `changes`, from the `applied` pods to `pods` by number, is urgent.

        A pod that changed and has no mark of these paths counts as urgent: it may be.
        """
        parts = (changes.joined, changes.left, changes.lost, changes.changed)
        if any(part and kind in self.kinds for kind, part in zip(KINDS, parts, strict=True)):
            return True
        if not self.paths:
            return False
        before = {member.seq: member.mark for member in applied}
        return any(before.get(m.seq) != self.mark(pods[m.seq]) for m in changes.changed)


def parse_urgent(text: str) -> Urgent:
    """Read a comma list of kinds and of paths such as `payload.state`.

    Raises `ValueError`, whose message says what is wrong with which item.
    """
    kinds, paths = set[str](), dict[tuple[str, ...], None]()
    for item in filter(None, map(str.strip, text.split(","))):
        path = tuple(item.removeprefix(_PAYLOAD).split("."))
        if item in KINDS:
            kinds.add(item)
        elif item.startswith(_PAYLOAD) and all(path):
            paths[path] = None
        else:
            raise ValueError(f"{item!r:.60} is none of them")
    if not kinds and not paths:
        raise ValueError("it names none of them")
    return Urgent(frozenset(kinds), tuple(paths))


def _at(value: JSON, path: Iterable[str]) -> list[JSON]:
    """Return a list of the value at a path; an empty one if there is none."""
    for name in path:
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and _INDEX.match(name) and int(name) < len(value):
            value = value[int(name)]
        else:
            return []
    return [value]
