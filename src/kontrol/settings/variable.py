"""What one variable is: its name, how its text becomes a value, and what is said of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Variable(Generic[T_co]):
    """One variable: how its text becomes a value, and what is said of it.

    `default` is text for `parse`, None if there is none (the value is None then, unless it can be
    `found`); `otherwise` says in words what holds without either. `names` is what a path must be
    the name of. `secrecy` is `path` if the value names a file with a secret, `value` if it is
    itself one: neither reaches a child process, and the latter is refused and never shown.
    """

    name: str
    group: str
    parse: Callable[[str], T_co]
    doc: str
    default: str | None = None
    otherwise: str = ""
    names: Literal["", "file", "folder"] = ""
    secrecy: Literal["", "path", "value"] = ""
