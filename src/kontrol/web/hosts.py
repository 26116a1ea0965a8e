"""The host names of this process: a request for another one is refused.

A page in an operator's browser may point a name of its own at our address, and then read answers
as its own (DNS rebinding). The browser sends the name in `Host`; one that is not ours is refused.
An address is always accepted: no page can point it elsewhere.

Such a page is after what a client on loopback may read. So a Service's name is accepted in every
cluster domain (`masters.games.svc.ANY.DOMAIN`), but only from elsewhere: a process does not know
its cluster domain, and from elsewhere there is nothing more to read than without a token.
"""

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from kontrol.web.access import is_local
from kontrol.web.message import HttpError, Request

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%25[\w.~-]+)?\]|[^\[\]:/?#@*\s]*)(?::[0-9]*)?\Z")


_DOMAINS = ("cluster.local", "clusterset.local")
"""The default domain of clusters, and that of several clusters together."""


def names_of(
    *, ident: str, ip: str, hostname: str, namespace: str, masters: Iterable[str]
) -> frozenset[str]:
    """Return the names of a pod: its own, and those of the Services of its `masters`.

    `masters` are DNS names or addresses, as tiers have them. A name without a dot, or with one, may
    be a Service's in Kubernetes, which has longer forms too, also for each pod behind it. A name
    that ends in `.svc.*` stands for every cluster domain.
    """
    names = {"localhost", ident, ip, hostname}
    if _is_address(ip):
        dashed = ip.replace(".", "-").replace(":", "-")
        names |= _forms(dashed, namespace, "pod")
        ours = ["", f"{ident}.", f"{hostname}.", f"{dashed}."]
    else:
        ours = ["", f"{ident}.", f"{hostname}."]
    for master in masters:
        names.add(master)
        service, *rest = master.lower().removesuffix(".").split(".")
        if _is_address(master) or not (len(rest) < 2 or rest[1] == "svc"):
            continue
        space = rest[0] if rest else namespace
        for prefix in ours:
            names |= {f"{prefix}{service}", *_forms(f"{prefix}{service}", space, "svc")}
    return frozenset(name.lower().removesuffix(".") for name in names if name)


def _forms(name: str, namespace: str, kind: str) -> set[str]:
    """Return the forms of a name that the cluster's DNS has, from `NAME.NAMESPACE` on."""
    short = f"{name}.{namespace}"
    full = f"{short}.{kind}"
    return {short, full, f"{full}.*", *(f"{full}.{domain}" for domain in _DOMAINS)}


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
    ours = name in names or _is_address(name.strip("[]").partition("%")[0])
    if not ours and not (_any_domain(name) in names and not is_local(request)):
        raise HttpError(
            421,
            "UnknownHost",
            f"{name[:80]!r} is not a name of this process; use its address, or list the name in "
            "KONTROL_NAMES there",
        )


def _any_domain(name: str) -> str:
    """Return the entry that stands for a name of the cluster's DNS in every domain."""
    for kind in (".svc.", ".pod."):
        head, found, _ = name.partition(kind)
        if found:
            return f"{head}{kind}*"
    return ""


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
