"""The record of the desired state, as the store has it: one document (decision 0186). Pure."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from kontrol.ensemble.canonical import JSON, NotJSON, canonical, parse
from kontrol.ensemble.desired import (
    MAX_KEYS,
    MAX_SPEC,
    BadSetting,
    Setting,
    SpecChanges,
    check_key,
    document_of,
)
from kontrol.master.records.fields import Damaged, Fields

_MAX_RECORD = 2 * 1024 * 1024  # bytes that are read; etcd takes 1.5 MiB by default
_LOG = 64  # changes that are remembered
_NAME = 1024  # characters
READ_DEPTH = 100  # of arrays and objects within each other


@dataclass(frozen=True, slots=True)
class Value:
    """A value, canonical, and which client set it when. `more` are fields of a later version."""

    value: bytes
    by: str = ""
    at: str = ""
    more: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Logged:
    """A change that was made: `id` names the write, `unset` says which kind it is."""

    id: str
    key: str
    by: str
    at: str
    unset: bool = False


@dataclass(frozen=True)
class Desired:
    """The desired state. `log` has the latest changes, the newest last.

    The log tells a writer whose answer was lost whether its change was made, and a run which client
    unset a key. Invariant: what is made by `set` and `unset` is within the limits.
    """

    values: Mapping[str, Value] = field(default_factory=dict)
    log: tuple[Logged, ...] = ()
    more: Mapping[str, JSON] = field(default_factory=dict)

    @cached_property
    def document(self) -> bytes:
        """The JSON object that the callback gets."""
        return document_of({key: each.value for key, each in self.values.items()})

    @cached_property
    def marks(self) -> dict[str, str]:
        """A hash of each value: what an acknowledged run keeps of the state that it was for."""
        return {
            key: hashlib.sha256(each.value).hexdigest()[:32] for key, each in self.values.items()
        }

    def since(self, marks: Mapping[str, str]) -> SpecChanges:
        """Return the difference from the state that had these `marks`."""
        now = self.marks
        if now == marks:
            return SpecChanges()
        differ = sorted(key for key, mark in now.items() if marks.get(key) != mark)
        gone = {one.key: Setting(one.key, one.by, one.at) for one in self.log if one.unset}
        return SpecChanges(
            tuple(Setting(key, self.values[key].by, self.values[key].at) for key in differ),
            tuple(gone.get(key, Setting(key)) for key in sorted(marks.keys() - now.keys())),
        )

    def logged(self, id_: str) -> bool:
        """Tell whether the write of this id is among the latest changes."""
        return any(one.id == id_ for one in self.log)

    def set(self, value: bytes, change: Logged) -> "Desired":
        """Return it with a value for the key of `change`. Raises `BadSetting` for a limit."""
        before = self.values.get(change.key)
        new = Value(value, change.by, change.at, before.more if before else {})
        made = self._with({**self.values, change.key: new}, change)
        if before is None and len(made.values) > MAX_KEYS:
            raise BadSetting(
                "TooManyKeys",
                f"the desired state has {len(self.values)} keys; expected at most {MAX_KEYS}. "
                "Unset some, or put several values into an object under one key",
            )
        size = len(made.document)
        if size > MAX_SPEC and size > len(self.document):
            raise BadSetting(
                "SpecTooLarge",
                f"the desired state would be {size} bytes of JSON; expected at most {MAX_SPEC}. "
                "Unset some keys",
            )
        return made

    def unset(self, change: Logged) -> "Desired":
        """Return it without the key of `change`."""
        values = {key: each for key, each in self.values.items() if key != change.key}
        return self._with(values, change)

    def _with(self, values: Mapping[str, Value], change: Logged) -> "Desired":
        return replace(self, values=values, log=(*self.log, change)[-_LOG:])

    @classmethod
    def decode(cls, raw: bytes) -> "Desired":
        """Read what `encode` wrote. Raises `Damaged`, which names no value of it."""
        size = f"{len(raw)} bytes"
        if len(raw) > _MAX_RECORD:
            raise Damaged("the record", size, f"at most {_MAX_RECORD}")
        try:
            record = parse(raw, depth=READ_DEPTH)
        except NotJSON as error:
            raise Damaged("the record", size, f"JSON ({error})") from None
        if not isinstance(record, dict) or not isinstance(record.get("values", {}), dict):
            raise Damaged("the record", size, "a JSON object with an object of values")
        found = Fields(record)
        entries = found.object("values")
        values = {} if entries is None else {k: _value(k, v) for k, v in entries.more.items()}
        lines = found.more.pop("log", None)
        log = [_logged(line) for line in lines] if isinstance(lines, list) else []
        return cls(values, tuple(one for one in log if one is not None)[-_LOG:], found.more)

    def encode(self) -> bytes:
        """Return the record as stored."""
        values = [
            b'%s:{"value":%s,%s' % (canonical(key), each.value, canonical(_rest(each))[1:])
            for key, each in sorted(self.values.items())
        ]
        log = canonical(
            [{"id": o.id, "key": o.key, "by": o.by, "at": o.at, "unset": o.unset} for o in self.log]
        )
        more = canonical(dict(self.more))[1:-1]
        return b'{"values":{%s},"log":%s%s}' % (b",".join(values), log, b"," * bool(more) + more)


def _rest(value: Value) -> dict[str, JSON]:
    return {**value.more, "by": value.by, "at": value.at}


def _value(key: str, entry: JSON) -> Value:
    try:
        check_key(key)
    except BadSetting as error:
        raise Damaged("a key", key, str(error)) from None
    if not isinstance(entry, dict) or "value" not in entry:
        raise Damaged("an entry", key, "an object with a value")
    found = Fields(entry)
    value = canonical(found.more.pop("value"))
    by, at = found.text("by", "", most=_NAME), found.text("at", "", most=_NAME)
    return Value(value, by, at, found.more)


def _logged(line: JSON) -> Logged | None:
    """Read a line of the log; None for one that cannot be read, since it decides nothing."""
    try:
        found = Fields(line)
        id_, key, by, at = (found.text(n, "", most=_NAME) for n in ("id", "key", "by", "at"))
        return Logged(id_, key, by, at, unset=found.flag("unset"))
    except Damaged:
        return None
