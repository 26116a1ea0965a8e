"""From an environment to values with their sources: the first layer that has a variable wins.

The layers, in order: the environment, what `debug` presumes, what `kontrol boot` left in this
container, what was found on the spot, and defaults. A variable whose value is refused is left out
of the values and is a mistake; nothing is raised here, so that `kontrol config` can show everything
at once. Pure.
"""

import contextlib
import difflib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar, cast

from kontrol.settings import values
from kontrol.settings import variables as v
from kontrol.settings.booted import NOTHING, Booted
from kontrol.settings.errors import Mistake
from kontrol.settings.variable import Variable

MASTER = "kontrol.unity3d.com/master"  # the annotation that lists the tiers to report to
LOOPBACK = "127.0.0.1"
MASK = "***"

_T = TypeVar("_T")

# What Kubernetes injects for each Service of the namespace whose name begins with `kontrol`.
_LINK_NAME = re.compile(
    r"KONTROL(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)\Z"
)
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entry:
    """A variable's text, fit to be shown, and the layer that it is from."""

    text: str
    source: str


@dataclass(slots=True)
class Resolved:
    """What is known after all layers: texts with sources, parsed values, mistakes and notes.

    `notes` are (level, text) as `logging` has them. `host` is what debug mode presumes, if on.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    notes: list[tuple[int, str]] = field(default_factory=list)
    host: str | None = None

    def get(self, variable: Variable[_T]) -> _T | None:
        """Return the variable's value, None if it has none or it was refused."""
        return cast("_T | None", self.values.get(variable.name))

    def require(self, variable: Variable[_T]) -> _T:
        """Return the variable's value. Raises `KeyError` if it has none."""
        return cast("_T", self.values[variable.name])

    def refuse(self, variable: Variable[object], expected: str) -> None:
        """Note that the variable's value, or its absence, is a mistake."""
        entry = self.entries.get(variable.name)
        self.mistakes.append(Mistake(variable.name, entry.text if entry else None, expected))


_URLS = (v.ETCD, v.MASTER)


def resolve(
    environ: Mapping[str, str], found: Mapping[str, str], booted: Booted = NOTHING
) -> Resolved:
    """Lay `environ` over `booted`, `found` (texts by name of variable) and the defaults; parse."""
    result = Resolved(notes=list(booted.notes))
    given = {name: text.strip() for name, text in environ.items() if text.strip()}
    _drop_links(given, result)
    _warn_unknown(given, result)
    debug = _is_debug(given.get(v.MODE.name, v.MODE.default or ""))
    if debug:
        result.host = given.get(v.HOST.name, LOOPBACK)
    left = {name: text for facts in booted.facts.values() for name, text in facts.items()}
    layers = (
        ("environment", given),
        ("debug mode", _debug(result.host)),
        *booted.facts.items(),
        ("found", {name: text for name, text in found.items() if text.strip()}),
        (v.HOST.name, {v.ETCD.name: given.get(v.HOST.name) or left.get(v.HOST.name, "")}),
        ("default", _defaults(given)),
    )
    for variable in v.VARIABLES:
        for source, layer in layers:
            if text := layer.get(variable.name):
                result.entries[variable.name] = Entry(_shown(variable, text), source)
                _parse(variable, text, result)
                break
    return result


def _parse(variable: Variable[object], text: str, result: Resolved) -> None:
    try:
        result.values[variable.name] = variable.parse(text)
    except values.BadValue as error:
        result.refuse(variable, str(error))


def _shown(variable: Variable[object], text: str) -> str:
    """Mask what is secret, the userinfo of a URL too, although it will be refused."""
    if variable.secrecy == "value":
        return MASK
    before, userinfo, host = text.rpartition("@")
    return f"{MASK}@{host}" if variable in _URLS and before and userinfo else text


def _is_debug(text: str) -> bool:
    try:
        return "debug" in values.modes(text)
    except values.BadValue:
        return False


def _debug(host: str | None) -> dict[str, str]:
    if host is None:
        return {}
    layer = {
        v.ID.name: "local",
        v.LABELS.name: json.dumps({"app": "test", "role": "test"}),
        v.ETCD.name: host,
    }
    with contextlib.suppress(values.BadValue):  # a DNS name: the address is found on the spot
        layer[v.IP.name] = values.address(host)
    return layer


def _defaults(given: Mapping[str, str]) -> dict[str, str]:
    layer = {item.name: item.default for item in v.VARIABLES if item.default is not None}
    layer[v.ANNOTATIONS.name] = "{}"
    if data := given.get("XDG_DATA_HOME") or given.get("HOME"):
        below = "kontrol" if "XDG_DATA_HOME" in given else ".local/share/kontrol"
        layer[v.DATA.name] = f"{data}/{below}"
    with contextlib.suppress(values.BadValue):  # it is reported by its own name
        damper = v.DAMPER.parse(given.get(v.DAMPER.name, layer[v.DAMPER.name]))
        most = min(6 * damper, values.DAY)
        layer[v.DAMPER_MAX.name] = f"{most:.15g}" if most > 0.001 else f"{most:.20f}"
    return layer


def _drop_links(given: dict[str, str], result: Resolved) -> None:
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
        mend = "set enableServiceLinks: false in the pod's spec to be rid of them"
        result.notes.append((logging.INFO, f"ignored Kubernetes service links {names} ({mend})"))


def _warn_unknown(given: Mapping[str, str], result: Resolved) -> None:
    known = [variable.name for variable in v.VARIABLES]
    for name in sorted(given):
        if name.startswith("KONTROL_") and name not in known:
            near = difflib.get_close_matches(name, known, 1, cutoff=0)[0]
            result.notes.append((logging.WARNING, f"{name} is unknown: did you mean {near}?"))
