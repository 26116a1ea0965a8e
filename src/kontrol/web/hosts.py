"""The names under which this process may be asked.

A page in an operator's browser may point a name of its own at our address, and then read answers
as its own (DNS rebinding). The browser tells the name in `Host`; one that is not ours is refused.
An address is always right: nobody can point it elsewhere.
"""

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from kontrol.web.message import HttpError, Request

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%25[\w.~-]+)?\]|[^\[\]:/?#@\s]*)(?::[0-9]*)?\Z")


def names_of(
    *, ident: str, ip: str, hostname: str, namespace: str, masters: Iterable[str]
) -> frozenset[str]:
    """Return the names of a pod: its own, and those of the Services that `masters` are named by.

    `masters` are DNS names or addresses, as tiers have them. A name without a dot, or with one, may
    be a Service's in Kubernetes, which has longer forms too.
    """
    names = {"localhost", ident, ip, hostname}
    for master in masters:
        names.add(master)
        parts = master.split(".")
        if len(parts) <= 2:
            service, space = parts[0], parts[1] if len(parts) == 2 else namespace
            full = f"{service}.{space}"
            names |= {full, f"{full}.svc", f"{full}.svc.cluster.local"}
    return frozenset(name.lower().removesuffix(".") for name in names if name)


def check(request: Request, names: frozenset[str]) -> None:
    """Refuse a request for another host. Raises `HttpError`.

    HTTP/1.0 may leave the host out; no browser does.
    """
    host = request.headers.get("host")
    scheme, separator, _ = request.target.partition("://")
    if separator and scheme.lower() in ("http", "https"):
        host = _authority(request.target)
    if host is None:
        return
    match = _HOST.match(host)
    if match is None:
        raise HttpError(400, "BadHost", f"Host is {host[:80]!r}; expected a name or address")
    name = match[1].lower().removesuffix(".")
    if name not in names and not _is_address(name.strip("[]").partition("%")[0]):
        raise HttpError(
            421,
            "UnknownHost",
            f"{name[:80]!r} is no name of this process; ask by address, or list the name in the "
            "annotation kontrol.unity3d.com/master of its pod",
        )


def _authority(target: str) -> str:
    try:
        return urlsplit(target).netloc
    except ValueError:
        return "["  # no host


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
