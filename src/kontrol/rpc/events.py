"""The events of a ZeroRPC channel, as values, and their names and arguments on the wire.

Pure. One class per event of protocol version 3. `Open` carries the method's name in the place of
the event's name; every other event has a fixed one. `from_wire` is the inverse of `name` and
`args`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

MOST_SLOTS = 2**31 - 1
"""The most items that one `More` may ask for; more than any peer can consume."""


class Unfit(ValueError):
    """An event's arguments are not those that its name asks for."""


@dataclass(frozen=True, slots=True)
class Open:
    """The caller calls `name(*args)`: the first event of a channel."""

    name: str
    args: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """The answer of a method that returns; closes the channel."""

    name: ClassVar[str] = "OK"
    value: object

    @property
    def args(self) -> object:
        """The arguments on the wire."""
        return (self.value,)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error instead of an answer, or the caller's notice that it gave up; closes the channel."""

    name: ClassVar[str] = "ERR"
    error: str
    message: str
    traceback: str

    @property
    def args(self) -> object:
        """The arguments on the wire."""
        return (self.error, self.message, self.traceback)


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a stream."""

    name: ClassVar[str] = "STREAM"
    value: object

    @property
    def args(self) -> object:
        """The arguments on the wire: the item itself, not wrapped."""
        return self.value


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a stream; closes the channel."""

    name: ClassVar[str] = "STREAM_DONE"

    @property
    def args(self) -> object:
        """The arguments on the wire."""
        return None


@dataclass(frozen=True, slots=True)
class More:
    """The sender has room for `slots` further events that carry data."""

    name: ClassVar[str] = "_zpc_more"
    slots: int

    @property
    def args(self) -> object:
        """The arguments on the wire."""
        return (self.slots,)


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life."""

    name: ClassVar[str] = "_zpc_hb"

    @property
    def args(self) -> object:
        """The arguments on the wire: one zero, for peers of protocol version 2."""
        return (0,)


Reply = Result | Failure | Item | Done
Event = Open | Reply | More | Beat


def failure(error: str, message: str) -> Failure:
    """Return an error; in the place of a traceback, it says the same again.

    The reference library shows its users nothing but that; a real one would show unknown
    clients our internals.
    """
    return Failure(error, message, f"{error}: {message}")


def from_wire(name: str, args: object) -> Event:
    """Return the event that `name` and `args` stand for on an open channel. Raises `Unfit`."""
    reader = _READERS.get(name)
    if reader is None:
        raise Unfit(f"{name!r} is no event of an open channel: expected {', '.join(_READERS)}")
    return reader(args)


def _result(args: object) -> Event:
    if not isinstance(args, list) or len(args) != 1:
        raise Unfit("the arguments of OK must be an array of one value")
    return Result(args[0])


def _failure(args: object) -> Event:
    if not isinstance(args, list) or not 1 <= len(args) <= 3:
        raise Unfit("the arguments of ERR must be an array of name, message and traceback")
    if len(args) == 1:  # protocol version 1: the message alone
        return Failure("RemoteError", _shown(args[0]), "")
    error, message, traceback = (_shown(arg) for arg in (*args, None)[:3])
    return Failure(error, message, traceback)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else repr(value)


def _more(args: object) -> Event:
    slots = args[0] if isinstance(args, list) and args else None
    if type(slots) is not int or not 0 < slots <= MOST_SLOTS:
        raise Unfit(f"the argument of _zpc_more must be an integer from 1 to {MOST_SLOTS}")
    return More(slots)


_READERS: Mapping[str, Callable[[object], Event]] = {
    Result.name: _result,
    Failure.name: _failure,
    Item.name: Item,
    Done.name: lambda _: Done(),
    More.name: _more,
    Beat.name: lambda _: Beat(),
}
