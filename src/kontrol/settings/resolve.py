"""From an environment to values with their sources: the first layer that has a variable wins.

The layers, in order: the environment, what `debug` presumes, what `kontrol boot` left in this
container, what was found on this host, and defaults. A variable with a bad value has no value and
is a mistake; nothing is raised here, so that `kontrol config` can show everything in one go. Pure.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from logging import INFO, WARNING
from types import MappingProxyType
from typing import NamedTuple, TypeVar, cast

from kontrol.ensemble.tiers import Tier
from kontrol.settings import values
from kontrol.settings import variables as v
from kontrol.settings.variables import Variable, text_of
from kontrol_common.text import escaped, escaped_json

MASTER = "kontrol.unity3d.com/master"  # the annotation that lists the tiers to report to
MASK = "***"

_T = TypeVar("_T")
_SHOWN = 80  # characters of a value that are enough to recognise it
_HEAD = ("VARIABLE", "VALUE", "SOURCE")
_URLS = (v.ETCD, v.MASTER)

# What Kubernetes injects for each Service of the namespace whose name begins with `kontrol`.
_LINK_NAME = re.compile(
    r"KONTROL(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)\Z"
)
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)


class Mistake(NamedTuple):
    """A bad or missing value. `text` is the value given, None if there is none, or to hide it."""

    name: str
    text: str | None
    expected: str

    def __str__(self) -> str:
        if self.text is None:
            return f"{self.name}: expected {self.expected}"
        shown = self.text if len(self.text) <= _SHOWN else self.text[: _SHOWN - 3] + "..."
        return f"{self.name}={shown!r}: expected {self.expected}"


class SettingsError(Exception):
    """The configuration cannot be used; `mistakes` has every reason."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        count = len(self.mistakes)
        head = "1 mistake" if count == 1 else f"{count} mistakes"
        super().__init__("\n  ".join([f"{head} in the settings:", *map(str, self.mistakes)]))


class Booted(NamedTuple):
    """What `kontrol boot` left: texts by name of variable, grouped by where boot found them.

    `notes` are (level, text) as `logging` has them: why something was ignored.
    """

    facts: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    notes: tuple[tuple[int, str], ...] = ()


NOTHING = Booted()


class Entry(NamedTuple):
    """A variable's text, fit to be shown, and the layer that it is from."""

    text: str
    source: str


@dataclass(slots=True)
class Resolved:
    """The result of all layers: texts with sources, parsed values, mistakes and notes.

    `notes` are (level, text) as `logging` has them. `host` is what debug mode presumes, None
    without it. `tiers` and `argv` (of the callback) are made by the rules of `parse`.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    notes: list[tuple[int, str]] = field(default_factory=list)
    host: str | None = None
    tiers: tuple[Tier, ...] = ()
    argv: tuple[str, ...] = ()

    def get(self, variable: Variable[_T]) -> _T | None:
        """Return the variable's value, None if it has none or a bad one."""
        return cast("_T | None", self.values.get(variable.name))

    def require(self, variable: Variable[_T]) -> _T:
        """Return the variable's value. Raises `KeyError` if it has none."""
        return cast("_T", self.values[variable.name])

    def refuse(self, variable: Variable[object], expected: str) -> None:
        """Note that the variable's value, or its absence, is a mistake."""
        entry = self.entries.get(variable.name)
        self.mistakes.append(Mistake(variable.name, entry.text if entry else None, expected))


def resolve(
    environ: Mapping[str, str], found: Mapping[str, str], booted: Booted = NOTHING
) -> Resolved:
    """Lay `environ` over `booted`, `found` (texts by name of variable) and the defaults; parse."""
    result = Resolved(notes=list(booted.notes))
    given = {name: text.strip() for name, text in environ.items() if text.strip()}
    _drop_service_links(given, result)
    _warn_unknown(given, result)
    debug = _is_debug(given)
    if debug:
        result.host = given.get(v.HOST.name, v.LOOPBACK)
    left = {name: text for facts in booted.facts.values() for name, text in facts.items()}
    layers = (
        ("environment", given),
        ("debug mode", {row.name: text_of(row.debug, given) for row in v.VARIABLES if debug}),
        *booted.facts.items(),
        ("found", {name: text for name, text in found.items() if text.strip()}),
        (v.HOST.name, {v.ETCD.name: given.get(v.HOST.name) or left.get(v.HOST.name, "")}),
        ("default", {row.name: text_of(row.default, given) for row in v.VARIABLES}),
    )
    for variable in v.VARIABLES:
        for source, layer in layers:
            if text := layer.get(variable.name):
                result.entries[variable.name] = Entry(_shown(variable, text), source)
                try:
                    result.values[variable.name] = variable.parse(text)
                except values.BadValue as error:
                    result.refuse(variable, str(error))
                break
    return result


def rows(resolved: Resolved) -> list[tuple[str, str, str]]:
    """Return (variable, value, source) of all variables, and of the tiers; secrets are masked."""
    lines: list[tuple[str, str, str]] = []
    for variable in v.VARIABLES:
        entry = resolved.entries.get(variable.name)
        if entry is not None:
            lines.append((variable.name, entry.text, entry.source))
        elif variable.secrecy != "value":  # a refused variable is shown only if it is set
            lines.append((variable.name, "", "not set"))
        if variable is v.ANNOTATIONS and MASTER in resolved.entries:
            tiers = resolved.entries[MASTER]
            lines.append((MASTER, tiers.text, tiers.source))
    return lines


def as_table(resolved: Resolved) -> str:
    """Return the rows as aligned columns under a head."""
    lines = [_HEAD, *((name, escaped(text), source) for name, text, source in rows(resolved))]
    wide = [max(len(line[column]) for line in lines) for column in range(2)]
    wide[1] = min(wide[1], 60)
    return "\n".join(
        f"{name:<{wide[0]}}  {text:<{wide[1]}}  {source}" for name, text, source in lines
    )


def as_json(resolved: Resolved) -> str:
    """Return the rows, mistakes and notes as one JSON document."""
    document = {
        "values": [
            {"variable": name, "value": text or None, "source": source}
            for name, text, source in rows(resolved)
        ],
        "mistakes": [
            {"variable": mistake.name, "value": mistake.text, "expected": mistake.expected}
            for mistake in resolved.mistakes
        ],
        "notes": [text for _, text in resolved.notes],
    }
    return escaped_json(document, indent=2)


def _shown(variable: Variable[object], text: str) -> str:
    """Mask what is secret, also the userinfo of a URL, although it will be refused."""
    if variable.secrecy == "value":
        return MASK
    before, userinfo, host = text.rpartition("@")
    return f"{MASK}@{host}" if variable in _URLS and before and userinfo else text


def _is_debug(given: Mapping[str, str]) -> bool:
    try:
        return "debug" in v.MODE.parse(given.get(v.MODE.name) or text_of(v.MODE.default, given))
    except values.BadValue:
        return False


def _drop_service_links(given: dict[str, str], result: Resolved) -> None:
    known = {variable.name for variable in v.VARIABLES}
    links = [
        name
        for name, text in given.items()
        if name.startswith("KONTROL_")
        and (
            (name not in known and _LINK_NAME.match(name))
            or (name.endswith("_PORT") and _LINK_VALUE.match(text))
        )
    ]
    for name in links:
        del given[name]
    if links:
        names = ", ".join(sorted(links))
        fix = "set enableServiceLinks: false in the pod's spec to avoid them"
        result.notes.append((INFO, f"ignored Kubernetes service links {names} ({fix})"))


def _warn_unknown(given: Mapping[str, str], result: Resolved) -> None:
    known = [variable.name for variable in v.VARIABLES]
    for name in sorted(given):
        if name.startswith("KONTROL_") and name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, 1, cutoff=0)[0]
            result.notes.append((WARNING, f"{name} is unknown: did you mean {near}?"))
