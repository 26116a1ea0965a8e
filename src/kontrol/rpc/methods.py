"""What a server offers: its methods, and the built-in ones that describe them to a caller.

A method is a coroutine function (it answers once) or an async generator function (it streams). Its
first parameter is the `Call`; the others, positional, and the docstring are its public face.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from kontrol.rpc.errors import Refused
from kontrol.rpc.security.keys import Kind


@dataclass(slots=True)
class Call:
    """One call: the `method`'s name, its `args`, and the caller.

    `peer` is for logs and for telling connections apart: the caller's IP address, `#`, and
    the connection's identity in hex. It proves nothing. `caller` is proved: the kind of the
    caller's key, None where no keys are used; `key` is how that public key begins, for logs.
    `gone` says why the answer is not awaited any more; it is set before the handler is cancelled.
    """

    method: str
    args: tuple[object, ...]
    peer: str
    caller: Kind | None = None
    key: str = ""
    gone: str | None = None


Method = Callable[..., Coroutine[Any, Any, object] | AsyncIterator[object]]
"""`async def method(call: Call, ...) -> object`, or an async generator function."""


@dataclass(frozen=True, slots=True)
class Restricted:
    """A method for some callers only; see `restricted`."""

    method: Method
    kinds: tuple[Kind, ...]
    insecure: bool
    fix: str

    def __call__(self, *args: object) -> Coroutine[Any, Any, object] | AsyncIterator[object]:
        """Call the method itself: the server checks the caller."""
        return self.method(*args)


def restricted(
    method: Method, *kinds: Kind, insecure: bool = False, fix: str = "set KONTROL_KEYS"
) -> Method:
    """Return `method` for callers with a key of these kinds; others get `Forbidden` in its place.

    Where no keys are used it is refused too, with the `fix`, unless `insecure` allows all callers.
    """
    return Restricted(method, kinds, insecure, fix)


@dataclass(frozen=True, slots=True)
class Signature:
    """A method as callers see it. Made once, so that a call only compares a length."""

    name: str
    handler: Method
    streams: bool
    parameters: tuple[inspect.Parameter, ...]
    doc: str
    restriction: Restricted | None = None

    @classmethod
    def of(cls, name: str, handler: Method) -> "Signature":
        """Inspect `handler`. Raises `TypeError` if it cannot serve as a method."""
        restriction = handler if isinstance(handler, Restricted) else None
        if restriction is not None:
            handler = restriction.method
        streams = inspect.isasyncgenfunction(handler)
        if not streams and not inspect.iscoroutinefunction(handler):
            raise TypeError(f"method {name!r} must be an `async def`, got {handler!r}")
        parameters = tuple(inspect.signature(handler).parameters.values())
        for parameter in parameters:
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD):
                raise TypeError(
                    f"method {name!r}: parameter {parameter.name!r} must be positional:"
                    " ZeroRPC has no keyword arguments"
                )
        if not parameters or parameters[0].kind is parameters[0].VAR_POSITIONAL:
            raise TypeError(f"method {name!r} must take the Call as its first parameter")
        doc = inspect.getdoc(handler) or ""  # clients expect a string
        return cls(name, handler, streams, parameters[1:], doc, restriction)

    def permit(self, caller: Kind | None) -> None:
        """Raise `Refused` unless holders of such a key (None: no keys are used) may call."""
        rule = self.restriction
        if rule is None or caller in rule.kinds or (caller is None and rule.insecure):
            return
        whose = f"{self.name} is for holders of {' and '.join(rule.kinds)} keys only"
        how = rule.fix if caller is None else f"this connection's is of the kind {caller}"
        raise Refused("Forbidden", f"{whose}: {how}")

    def check(self, count: int) -> None:
        """Raise `Refused` unless `count` arguments fit."""
        fixed = [one for one in self.parameters if one.kind is not one.VAR_POSITIONAL]
        least = sum(one.default is one.empty for one in fixed)
        most = len(fixed) if len(fixed) == len(self.parameters) else None
        if least <= count and (most is None or count <= most):
            return
        expected = str(least) if least == most else f"{least} to {most}" if most else f"{least}+"
        plural = "" if expected == "1" else "s"
        raise Refused(
            "TypeError",
            f"{self.name}({self._spelled()}) takes {expected} argument{plural}, got {count}",
        )

    def _spelled(self) -> str:
        return ", ".join(
            f"*{one.name}" if one.kind is one.VAR_POSITIONAL else one.name
            for one in self.parameters
        )

    def described(self) -> dict[str, object]:
        """Return what `_zerorpc_inspect` says of this method."""
        args: list[dict[str, object]] = []
        for one in self.parameters:
            args.append({"name": one.name})
            if one.default is not one.empty:
                args[-1]["default"] = _plain(one.default)
        return {"args": args, "doc": self.doc}

    def spec(self) -> list[object]:
        """Return what `_zerorpc_args` says: names, star name, None, defaults, as in Python 2."""
        fixed = [one for one in self.parameters if one.kind is not one.VAR_POSITIONAL]
        star = [one.name for one in self.parameters if one.kind is one.VAR_POSITIONAL]
        defaults = [_plain(one.default) for one in fixed if one.default is not one.empty]
        return [[one.name for one in fixed], star[0] if star else None, None, defaults or None]


class Catalog:
    """The methods of the server called `name`, with ZeroRPC's built-in ones."""

    def __init__(self, name: str, methods: Mapping[str, Method]) -> None:
        self.name = name
        self._public = {key: Signature.of(key, method) for key, method in methods.items()}
        own: Mapping[str, Method] = {
            "_zerorpc_ping": self._ping,
            "_zerorpc_name": self._name,
            "_zerorpc_list": self._list,
            "_zerorpc_help": self._help,
            "_zerorpc_args": self._args,
            "_zerorpc_inspect": self._inspect,
        }
        self._all = {key: Signature.of(key, method) for key, method in own.items()} | self._public

    def find(self, name: str, args: tuple[object, ...]) -> Signature:
        """Return the method that takes these arguments. Raises `Refused`."""
        method = self._all.get(name)
        if method is None:
            known = ", ".join(sorted(self._public)) or "none"
            raise Refused("NameError", f"{name!r} is not a method of {self.name}; it has: {known}")
        method.check(len(args))
        return method

    async def _ping(self, _call: Call) -> object:
        """Answer that this server is there."""
        return ["pong", self.name]

    async def _name(self, _call: Call) -> object:
        """Return this server's name."""
        return self.name

    async def _list(self, _call: Call) -> object:
        """Return the names of the methods."""
        return list(self._public)

    async def _help(self, _call: Call, method: object) -> object:
        """Return a method's docstring."""
        return self._described(method).doc

    async def _args(self, _call: Call, method: object) -> object:
        """Return a method's parameters, in the form of Python 2's `inspect.getargspec`."""
        return self._described(method).spec()

    async def _inspect(self, _call: Call) -> object:
        """Return this server's name, and its methods with their parameters and docstrings."""
        methods = {name: method.described() for name, method in self._public.items()}
        return {"name": self.name, "methods": methods}

    def _described(self, name: object) -> Signature:
        method = self._all.get(name) if isinstance(name, str) else None
        if method is None:
            raise Refused("NameError", f"{name!r:.80} is not a method of {self.name}")
        return method


def _plain(default: object) -> object:
    """Return a parameter's default as a value that any peer can read."""
    return default if isinstance(default, str | int | float | None) else repr(default)
