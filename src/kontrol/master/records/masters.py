"""The records that masters exchange: candidacies, operators' requests, the leader's plan.

Also `Meta`, the record of the layout itself: its version, and the floor of terms.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kontrol.ensemble.canonical import JSON
from kontrol.master.records.fields import HIGHEST_RUN, MOST, Damaged, Fields, Record
from kontrol.master.records.keys import SCHEMA

_NAME = 1024  # characters
_MOST_SECONDS = 1e9  # for which a plan waits


@dataclass(frozen=True, slots=True)
class Candidate(Record):
    """A candidacy. `fingerprint` is its callback's, empty without one; `term` is set once it leads.

    `version` is Kontrol's, empty if unknown. `ttl`, `fover` and `damper` are the master's settings
    in seconds, and `port` is where it accepts keepalives; None if unknown. `published` is a version
    of what is published that it has seen, if that is later than the store's. The id of a candidacy
    that cannot be read is `?`.
    """

    id: str = "?"
    address: str = ""
    fingerprint: str = ""
    term: int | None = None
    version: str = ""
    ttl: float | None = None
    fover: float | None = None
    damper: float | None = None
    port: int | None = None
    more: Mapping[str, JSON] = field(default_factory=dict)
    published: int | None = None

    @classmethod
    def decode(cls, raw: bytes) -> "Candidate":
        """Read what `encode` wrote. Raises `Damaged`."""
        found = Fields.of(raw)
        return cls(
            id=found.text("id", "?", most=_NAME),
            address=found.text("address", "", most=_NAME),
            fingerprint=found.text("fingerprint", "", most=_NAME),
            term=found.maybe_number("term", most=2 * MOST),
            version=found.text("version", "", most=_NAME),
            ttl=found.maybe_seconds("ttl"),
            fover=found.maybe_seconds("fover"),
            damper=found.maybe_seconds("damper"),
            port=found.maybe_number("port", least=1, most=65535),
            published=found.maybe_number("published"),
            more=found.more,
        )


@dataclass(frozen=True, slots=True)
class OperatorAnswer(Record):
    """The answer to a request: a line for people, and the run that it concerns."""

    message: str
    refused: bool = False
    run: int | None = None
    more: Mapping[str, JSON] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Fields) -> "OperatorAnswer":
        """Make an answer of its fields. Raises `Damaged`."""
        return cls(
            found.text("message", ""),
            found.flag("refused"),
            found.maybe_number("run", most=HIGHEST_RUN),
            found.more,
        )

    def public(self) -> dict[str, JSON]:
        """Return it as JSON, in which `run` may be null."""
        return {**self.more, "message": self.message, "refused": self.refused, "run": self.run}


@dataclass(frozen=True, slots=True)
class OperatorRequest(Record):
    """An operator's request, made by `by` at the time `at` (RFC 3339), about `run` or `pod`.

    A pod is named by its key, its id, or `#` and its number. The `kind` may be one that only a
    later version knows. `id` is the end of the request's key.
    """

    id: str
    kind: str
    by: str = "?"
    at: str = ""
    run: int | None = None
    answer: OperatorAnswer | None = None
    more: Mapping[str, JSON] = field(default_factory=dict)
    pod: str = ""

    @classmethod
    def decode(cls, key: str, raw: bytes) -> "OperatorRequest":
        """Read what `encode` wrote at `key`. Raises `Damaged`."""
        found = Fields.of(raw)
        answer = found.object("answer")
        return cls(
            id=key.rpartition("/")[2],
            kind=found.text("kind", most=_NAME),
            by=found.text("by", "?", most=_NAME),
            at=found.text("at", "", most=_NAME),
            run=found.maybe_number("run", most=HIGHEST_RUN),
            answer=None if answer is None else OperatorAnswer.of(answer),
            pod=found.text("pod", "", most=_NAME),
            more=found.more,
        )

    def public(self) -> dict[str, JSON]:
        """Return it as JSON, without its `id`."""
        asked: dict[str, JSON] = {"kind": self.kind, "by": self.by, "at": self.at, "run": self.run}
        if self.pod:
            asked["pod"] = self.pod
        if self.answer is not None:
            asked["answer"] = self.answer.public()
        return {**self.more, **asked}


def decode_plan(raw: bytes) -> dict[str, JSON]:
    """Read the known fields of the plan that `leader/publisher.py` writes. Raises `Damaged`.

    It is for people: `seconds` is how long was left at the leader's wall time `at`.
    """
    found = Fields.of(raw)
    plan: dict[str, JSON] = {"what": found.text("what", "unknown", most=_NAME)}
    plan |= {name: found.maybe_text(name, most=_NAME) for name in ("reason", "hold", "at")}
    plan |= {name: found.maybe_number(name) for name in ("missing", "of", "acknowledged")}
    plan |= {"seconds": found.more.get("seconds")}
    plan |= {name: found.more.get(name) or [] for name in ("lost", "peers")}
    seconds = plan["seconds"]
    if isinstance(seconds, bool) or not isinstance(seconds, int | float | None):
        raise Damaged("seconds", seconds, "a number of seconds")
    if seconds is not None and abs(seconds) > _MOST_SECONDS:
        raise Damaged("seconds", seconds, f"at most {_MOST_SECONDS:g} seconds")
    for name in ("lost", "peers"):
        names = plan[name]
        if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
            raise Damaged(name, names, "a list of names")
    return plan


class Outdated(Exception):
    """A later version of Kontrol wrote the data in the store."""


@dataclass(frozen=True, slots=True)
class Meta(Record):
    """The version of the data's layout, and the floor that is added to every term.

    A term is the creation revision of a key. When the store was restored to an earlier revision,
    the floor is raised, so that no term and no number of a run is ever used twice.
    """

    floor: int = 0
    version: int = SCHEMA
    more: Mapping[str, JSON] = field(default_factory=dict)

    @classmethod
    def decode(cls, raw: bytes) -> "Meta":
        """Read what `encode` wrote; without a floor it is 0, without a version the first.

        Raises `Outdated` for a later version, and `Damaged`.
        """
        found = Fields.of(raw)
        version = found.number("version", 1)
        if version > SCHEMA:  # before the rest, whose form the later version chose
            raise Outdated(
                f"the data in the store are of version {version}, and this master reads "
                f"versions up to {SCHEMA}: upgrade it"
            )
        return cls(found.number("floor", 0, most=2 * MOST), version, found.more)
