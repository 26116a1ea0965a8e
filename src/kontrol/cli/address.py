"""The masters to ask: from `--master`, the environment, or an agent's tiers, to URLs.

Pure. A tier is written as everywhere else, `masters` or `10.0.0.1|10.0.0.2:8000`: its port is that
of ZeroRPC, and REST is on the same hosts, on `KONTROL_HTTP_PORT`. Or as URLs, which have both.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from kontrol.ensemble.tiers import BadTiers, Tier, parse_tiers
from kontrol.settings import variables as v
from kontrol.settings.resolve import (
    MASTER,
    NOTHING,
    Booted,
    Mistake,
    Resolved,
    SettingsError,
    resolve,
)
from kontrol.settings.variables import Variable

_T = TypeVar("_T")

_EXPECTED = "a tier, as masters, masters:8000 or 10.0.0.1|10.0.0.2, or URLs parted by |"
_OPTION = "--master"
_SCHEMES = {"http": 80, "https": 443}


class Endpoint(NamedTuple):
    """Where a REST endpoint is: `http` or `https`, a name or an address without brackets, a port.

    A name stands for every master behind it. `pin` is a file with the certificate that it must
    have, whatever names are in it; None for any certificate of a trusted authority.
    """

    scheme: str
    host: str
    port: int
    pin: Path | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


class Target(NamedTuple):
    """The masters to ask, in this order; `source` says where they were named.

    `token_file` may be None; `note` says how the value was read, if that may surprise.
    """

    endpoints: tuple[Endpoint, ...]
    source: str
    token_file: Path | None
    note: str = ""


def find(
    environ: Mapping[str, str], master: str | None, *, tls: bool, booted: Booted = NOTHING
) -> Target:
    """Find the masters: `--master`, `KONTROL_MASTER`, this one, the annotation's first tier.

    `tls` says that hosts without a scheme speak TLS; so do they where the environment has a
    certificate for REST. Raises `SettingsError`, for what is needed of the environment alone.
    """
    resolved = resolve(environ, {}, booted)
    scheme = "https" if tls or v.TLS_CERT.name in resolved.entries else "http"
    token_file = _get(resolved, v.TOKEN_FILE)
    if master:
        endpoints, note = _option(master, scheme, resolved)
        return Target(endpoints, _OPTION, token_file, note)
    if given := _get(resolved, v.MASTER):
        source = v.MASTER.name
        endpoints = _parse(given, source, scheme, resolved)
        note = _other_port(given, endpoints[0], resolved)
        return Target(endpoints, source, token_file, note)
    endpoints = ()
    # This process's master is asked by an address that its certificate hardly names.
    own = Endpoint(scheme, own_address(resolved), _http_port(resolved), resolved.get(v.TLS_CERT))
    sources = []
    if "master" in (resolved.get(v.MODE) or ()):
        endpoints, sources = (own,), ["this master"]
    annotations = resolved.get(v.ANNOTATIONS) or {}
    if first := annotations.get(MASTER, "").partition(",")[0].strip():
        endpoints += _parse(first, MASTER, scheme, resolved)
        sources.append(f"the annotation {MASTER}")
    if not endpoints:
        endpoints, sources = (own,), ["nothing names a master: this host"]
    return Target(tuple(dict.fromkeys(endpoints)), ", ".join(sources), token_file)


def _option(text: str, scheme: str, resolved: Resolved) -> tuple[tuple[Endpoint, ...], str]:
    """Read `--master`, and return what is to be said of it.

    It may be copied from an annotation, whose port is that of ZeroRPC. Any other port is meant for
    what is asked here, which is REST.
    """
    rpc = _get(resolved, v.PORT)
    with contextlib.suppress(BadTiers):
        [tier] = parse_tiers(text, 0) if "://" not in text and "," not in text else [Tier("", 0)]
        if tier.port not in (0, rpc):
            return tuple(Endpoint(scheme, host, tier.port) for host in tier.hosts), ""
        endpoints = _parse(text, _OPTION, scheme, resolved)
        if not tier.port:
            return endpoints, ""
        port = endpoints[0].port
        note = f"{text}: port {rpc} is that of ZeroRPC ({v.PORT.name}); REST is asked, on {port}"
        return endpoints, f"{note} ({v.HTTP_PORT.name})"
    return _parse(text, _OPTION, scheme, resolved), ""


def _other_port(text: str, endpoint: Endpoint, resolved: Resolved) -> str:
    """Say of `KONTROL_MASTER` that its port is not the one that is used, unless that is plain.

    `kontrol invoke` uses it, by ZeroRPC. One that is not `KONTROL_PORT` may be meant for REST.
    """
    if "://" in text:
        return ""
    [tier] = parse_tiers(text, 0)
    if tier.port in (0, endpoint.port, _get(resolved, v.PORT)):
        return ""
    return (
        f"{v.MASTER.name}={text}: port {tier.port} is taken as that of ZeroRPC, and REST is asked "
        f"on port {endpoint.port} ({v.HTTP_PORT.name}). If it is that of REST, write a URL, as "
        f"{endpoint._replace(port=tier.port)}"
    )


def _parse(text: str, source: str, scheme: str, resolved: Resolved) -> tuple[Endpoint, ...]:
    if "://" in text:
        return tuple(_url(part.strip(), source) for part in text.split("|"))
    if "," in text:
        raise _refuse(source, text, f"{_EXPECTED}; a comma would begin another tier")
    try:
        tiers = parse_tiers(text, 1)
    except BadTiers as error:
        raise _refuse(source, text, f"{_EXPECTED}; {error}") from None
    port = _http_port(resolved)
    return tuple(Endpoint(scheme, host, port) for tier in tiers for host in tier.hosts)


def _url(text: str, source: str) -> Endpoint:
    expected = "a URL as http://masters:8001 or https://10.0.0.1:8001"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _refuse(source, text, f"{expected}; {error}") from None
    if not text.isprintable():  # urlsplit drops ends of lines
        raise _refuse(source, text, f"{expected}, on one line")
    if "@" in parts.netloc:
        raise _refuse(source, None, f"{expected}, without a password: {v.TOKEN_FILE.name} has it")
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise _refuse(source, text, expected)
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise _refuse(source, text, f"{expected}, without a path")
    try:
        host = parts.hostname
        [tier] = parse_tiers(f"[{host}]" if ":" in host else host, 1)
    except ValueError as error:
        raise _refuse(source, text, f"{expected}; {error}") from None
    return Endpoint(parts.scheme, tier.host, port or _SCHEMES[parts.scheme])


def _http_port(resolved: Resolved) -> int:
    port = _get(resolved, v.HTTP_PORT)
    if not port:
        expected = (
            f"a port, or a URL with one in --master or {v.MASTER.name}: 0 turns REST off here"
        )
        raise _refuse(v.HTTP_PORT.name, "0", expected)
    return port


def own_address(resolved: Resolved) -> str:
    """Return the address at which this host's own endpoint is."""
    bind = resolved.get(v.BIND) or "*"
    here = {"*": v.LOOPBACK, "0.0.0.0": v.LOOPBACK, "::": "::1"}  # noqa: S104  # compared, not bound
    return here.get(bind, bind)


def _get(resolved: Resolved, variable: Variable[_T]) -> _T | None:
    """Return a value that is needed, None if there is none; others may be as wrong as they like."""
    wrong = [mistake for mistake in resolved.mistakes if mistake.name == variable.name]
    if wrong:
        raise SettingsError(wrong)
    return resolved.get(variable)


def _refuse(name: str, text: str | None, expected: str) -> SettingsError:
    return SettingsError([Mistake(name, text, expected)])
