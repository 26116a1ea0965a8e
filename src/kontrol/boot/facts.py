"""Facts: the texts of the variables that boot exports, each with where it was found.

Pure. Layers of facts are overlaid; the first that has a variable wins, so that the environment is
never overruled.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from kontrol.settings import variables as v

_TABLES = {
    variable.name for variable in (v.LABELS, v.ANNOTATIONS, v.NODE_LABELS, v.NODE_ANNOTATIONS)
}
_LONGEST = 100_000  # octets; Linux takes 131,072 in one variable with its name
_NOTHING: Mapping[str, str] = MappingProxyType({})


class Fact(NamedTuple):
    """The text of a variable, and where it is from: environment, api, downward, node, aws, ..."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What is known of the machine that is the node, from its object or its cloud."""

    hostname: str | None = None
    eip: str | None = None
    zone: str | None = None
    region: str | None = None
    instance_type: str | None = None

    def texts(self) -> dict[str, str | None]:
        """Return the texts by name of variable."""
        return {
            v.HOSTNAME.name: self.hostname,
            v.EIP.name: self.eip,
            v.ZONE.name: self.zone,
            v.REGION.name: self.region,
            v.INSTANCE_TYPE.name: self.instance_type,
        }


Facts: TypeAlias = Mapping[str, Fact]


def layer(source: str, texts: Mapping[str, str | None]) -> dict[str, Fact]:
    """Return the facts of one source, without blank texts."""
    return {name: Fact(text, source) for name, text in texts.items() if text and text.strip()}


def overlay(*layers: Facts) -> dict[str, Fact]:
    """Overlay layers, the first on top; in the order of `FACTS`."""
    return {
        name: next(each[name] for each in layers if name in each)
        for name in v.FACTS
        if any(name in each for each in layers)
    }


def table(facts: Facts, name: str) -> Mapping[str, str]:
    """Return labels or annotations as a mapping; empty if there are none."""
    return v.ANNOTATIONS.parse(facts[name].text) if name in facts else _NOTHING


def encode(entries: Mapping[str, str]) -> str:
    """Return labels or annotations as the text of their variable."""
    return json.dumps(dict(entries), ensure_ascii=False)


def fit(facts: Facts) -> tuple[dict[str, Fact], list[str]]:
    """Return facts that each fit in one variable, and what was left out for that.

    Of labels and annotations, the longest entries are dropped: what is that long (`kubectl`'s
    `last-applied-configuration`) is for tools.
    """
    fitting, left_out = dict(facts), []
    for name in _TABLES & fitting.keys():
        entries = dict(table(facts, name))
        while len(fitting[name].text.encode("utf-8")) > _LONGEST:
            longest = max(entries, key=lambda key: len(entries[key].encode("utf-8")))
            del entries[longest]
            left_out.append(f"{longest} of {name}")
            fitting[name] = Fact(encode(entries), facts[name].source)
    return fitting, left_out
