"""Parsers of single values: text in, a typed value out, or `BadValue` with what was expected.

Pure: whether a file exists is checked in `kontrol.settings.load`. A parser gets text that is not
blank and has no white space at its ends.
"""

import ipaddress
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from kontrol.ensemble.canonical import NotJSON
from kontrol.ensemble.canonical import parse as parse_json
from kontrol.ensemble.numbers import decimal, whole
from kontrol.ensemble.pod import KEY, KEY_RULE, MAX_NAME, NAME, NAME_RULE, BadRecord, check_unicast
from kontrol.ensemble.tiers import BadTiers, Tier, parse_tiers
from kontrol.ensemble.urgent import KINDS, Urgent, parse_urgent

MODES = ("agent", "master", "debug", "verbose")
DAY = 86_400.0  # seconds; what is longer was most likely meant in milliseconds
ETCD_PORT = 2379
STATSD_PORT = 8125

_LABEL = re.compile(r"[0-9A-Za-z]([0-9A-Za-z_.-]{0,61}[0-9A-Za-z])?\Z")  # a Kubernetes label value
_LABEL_KEY = 317  # characters of a Kubernetes label's key: a DNS name, a slash, and 63 more
_DNS_LABEL = re.compile(r"[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?\Z")  # RFC 1123, as Kubernetes uses it
_SIZE = re.compile(r"([0-9]{1,15}) ?(|KiB|MiB|GiB)\Z")
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_ENDPOINTS = (
    "embedded, or a comma list of host, host:port, http://host:port, https://host:port or"
    " unix:///path"
)
_TRUTH = {"true": True, "yes": True, "on": True, "1": True}
_TRUTH |= {"false": False, "no": False, "off": False, "0": False}


class BadValue(ValueError):
    """A value that is not valid. The message completes "expected ..."; it shows no value."""


def modes(text: str) -> frozenset[str]:
    """Return the set of modes; `slave` is `agent`, and `debug` implies all the others."""
    names = {item.strip().lower() for item in text.split(",")} - {""}
    names = {"agent" if name == "slave" else name for name in names}
    for name in sorted(names.difference(MODES)):
        import difflib

        near = difflib.get_close_matches(name, (*MODES, "slave"), 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise BadValue(f"a comma list of {', '.join(MODES)}; {name!r} is none of them{hint}")
    if not names & {"agent", "master", "debug"}:
        raise BadValue("agent, master or debug with verbose: it names no mode to run")
    return frozenset(MODES) if "debug" in names else frozenset(names)


def port(text: str) -> int:
    """Return a TCP port."""
    try:
        return whole(text, 1, 65535)
    except ValueError:
        raise BadValue("a TCP port, 1 to 65535") from None


def port_or_off(text: str) -> int:
    """Return a TCP port, or 0 for none."""
    try:
        return 0 if text == "0" else port(text)
    except BadValue:
        raise BadValue("a TCP port, 1 to 65535, or 0 for none") from None


def address(text: str) -> str:
    """Return an IPv4 or IPv6 address in its shortest form; IPv4-mapped IPv6 comes as IPv4."""
    try:
        ip = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise BadValue("an IPv4 or IPv6 address, as 10.0.0.7 or fd00::7") from None
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            raise BadValue("an address without a zone, as fd00::7")
        ip = ip.ipv4_mapped or ip
    try:
        check_unicast(str(ip))
    except BadRecord:
        raise BadValue("the address of one host, as 10.0.0.7 or fd00::7") from None
    return str(ip)


def bind_address(text: str) -> str:
    """Return an address to listen on, `*` for all of them."""
    if text in ("*", "0.0.0.0", "::", "[::]"):  # noqa: S104  # the user's choice
        return "*" if text == "*" else text.strip("[]")
    try:
        return address(text)
    except BadValue:
        raise BadValue("an address of this host to listen on, or * for all") from None


def host(text: str) -> str:
    """Return a DNS name in lower case, or an address."""
    try:
        tiers = _places(f"[{text}]" if _bare_ipv6(text) else text, 1)
    except BadTiers:
        tiers = ()
    if len(tiers) != 1 or tiers[0].port != 1:
        raise BadValue("one DNS name or address, without a port")
    return tiers[0].host


def hosts(text: str) -> tuple[str, ...]:
    """Return the DNS names or addresses of a comma list, each once."""
    try:
        return tuple(dict.fromkeys(host(item.strip()) for item in text.split(",") if item.strip()))
    except BadValue:
        raise BadValue("a comma list of DNS names or addresses, without ports") from None


def name(text: str) -> str:
    """Return a name as a keepalive carries it."""
    if len(text) > MAX_NAME or not NAME.match(text):
        raise BadValue(NAME_RULE)
    return text


def user(text: str) -> str:
    """Return the name of a user of etcd."""
    if len(text) > MAX_NAME or not text.isprintable():
        raise BadValue(f"1 to {MAX_NAME} printable characters")
    return text


def line(text: str) -> str:
    """Return one line of printable text."""
    if not text.isprintable():
        raise BadValue("one line of printable characters")
    return text


def namespace(text: str) -> str:
    """Return the name of a Kubernetes namespace."""
    if not _DNS_LABEL.match(text):
        raise BadValue("a namespace: up to 63 lower-case letters, digits and '-'")
    return text


def table(text: str) -> Mapping[str, str]:
    """Return a JSON object whose values are strings, as labels and annotations are."""
    expected = 'a JSON object of strings, as {"app": "redis", "role": "cache"}'
    try:
        value = parse_json(text, depth=32)
    except NotJSON as error:
        raise BadValue(f"{expected}; {error}") from None
    if not isinstance(value, dict):
        raise BadValue(expected)
    strings: dict[str, str] = {}
    for key, item in value.items():
        if not isinstance(item, str):
            raise BadValue(f"{expected}; the value of {key!r} is not a string")
        strings[key] = item
    return MappingProxyType(strings)


def node_labels(text: str) -> Mapping[str, str]:
    """Return a `table` whose keys are those of labels, as `topology.kubernetes.io/zone`."""
    found = table(text)
    for key in found:
        if len(key) > _LABEL_KEY or not NAME.match(key):
            raise BadValue(
                f"labels whose keys are up to {_LABEL_KEY} letters, digits, '.', '_', '-' and '/', "
                f"as app.kubernetes.io/name; one is {key[:80]!r}"
            )
    return found


def labels(text: str) -> Mapping[str, str]:
    """Return `node_labels` with `app` and `role`, each fit to be part of a key."""
    found = node_labels(text)
    for key in ("app", "role"):
        if not _LABEL.match(found.get(key, "")):
            what = f"has {found[key]!r}" if key in found else "is missing"
            raise BadValue(
                f"labels with app and role, each up to 63 letters, digits, '-', '_' and '.'; "
                f"{key} {what}"
            )
    return found


def seconds(least: float) -> Callable[[str], float]:
    """Return a parser of durations in seconds, from `least` to a day."""
    return _number(f"a number of seconds from {least:g} to {DAY:g}", least, DAY)


def timeout(text: str) -> float | None:
    """Return a time limit in seconds."""
    return seconds(0.001)(text)


def every(text: str) -> float | None:
    """Return seconds between runs, within the bounds of what a callback may ask for."""
    return seconds(0.1)(text)


def urgent(text: str) -> Urgent:
    """Return which changes are urgent."""
    try:
        return parse_urgent(text)
    except ValueError as error:
        raise BadValue(
            f"a comma list of {', '.join(KINDS)} and paths as payload.state; {error}"
        ) from None


def count(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers within bounds."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and least <= int(text[:19]) <= most):
            raise BadValue(f"a whole number from {least} to {most}")
        return int(text)

    return parse


def size(text: str) -> int:
    """Return a number of bytes; KiB, MiB or GiB may follow it."""
    found = _SIZE.match(text)
    number = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 2**20 <= number <= 2**40:
        raise BadValue("a number of bytes from 1MiB to 1024GiB, as 268435456 or 256MiB")
    return number


def percent(text: str) -> float:
    """Return a percentage."""
    return _number("a percentage from 0 to 100", 0, 100)(text.removesuffix("%").rstrip())


def truth(text: str) -> bool:
    """Return whether the text says yes."""
    try:
        return _TRUTH[text.lower()]
    except KeyError:
        raise BadValue("TRUE or FALSE") from None


def cloud(text: str) -> str:
    """Return `auto`, `none`, or what may be the name of a cloud; `kontrol.boot` has their table."""
    if not _DNS_LABEL.match(text):
        raise BadValue("auto, none or the name of a cloud, as aws")
    return text


def command(text: str) -> str:
    """Return a command line."""
    if "\0" in text:
        raise BadValue("a command line without NUL characters")
    return text


def argv(text: str, *, shell: bool) -> tuple[str, ...]:
    """Return what to execute for a command line: its words, or a shell that reads it."""
    if shell:
        return ("/bin/sh", "-c", text)
    return _words(text, "set KONTROL_SHELL_CALLBACK=TRUE to have a shell read the line")


def hook(text: str) -> tuple[str, ...]:
    """Return the words of a hook's command line."""
    return _words(command(text), "give the line to a shell, as in sh -c '...'")


def _words(text: str, otherwise: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise BadValue(f"a command line; {str(error).lower()}: close it, or {otherwise}") from None
    if not words or not words[0]:
        raise BadValue("a command line with a program to run")
    return words


def path(text: str) -> Path:
    """Return a path as it is; `~` is not expanded, since no shell reads the variable."""
    if "\0" in text:
        raise BadValue("a path without NUL characters")
    return Path(text)


def key(text: str) -> str:
    """Return a pod's key."""
    if not KEY.match(text):
        raise BadValue(KEY_RULE)
    return text


def log_format(text: str) -> Literal["text", "json"]:
    """Return the format of log lines."""
    forms: dict[str, Literal["text", "json"]] = {"text": "text", "json": "json"}
    if text not in forms:
        raise BadValue("text or json")
    return forms[text]


def invoke(text: str) -> Literal["off", "insecure"]:
    """Return whether every client may run commands, or none."""
    known: dict[str, Literal["off", "insecure"]] = {"off": "off", "insecure": "insecure"}
    if text not in known:
        raise BadValue("insecure (all clients that reach the port may run commands) or off")
    return known[text]


def statsd(text: str) -> Tier:
    """Return the host and port of a statsd server."""
    try:
        tiers = _places(text, STATSD_PORT)
    except BadTiers:
        tiers = ()
    if len(tiers) != 1:
        raise BadValue(f"one host or host:port (port {STATSD_PORT} if none is given)")
    return tiers[0]


class Endpoints(NamedTuple):
    """Where etcd is: `host:port` or `unix:///path` of each member; none if it is embedded."""

    addresses: tuple[str, ...]
    tls: bool


def endpoints(text: str) -> Endpoints:
    """Return etcd's endpoints.

    A URL with a password is refused, since command lines and logs would show it.
    """
    if text == "embedded":
        return Endpoints((), tls=False)
    if "embedded" in (item.strip().lower() for item in text.split(",")):
        raise BadValue(f"{_ENDPOINTS}; embedded stands alone, in lower case")
    if "@" in text:
        raise BadValue(f"{_ENDPOINTS}; user and password go in KONTROL_ETCD_USER, _PASSWORD_FILE")
    pairs = dict.fromkeys(_endpoint(item.strip()) for item in text.split(","))
    schemes = {scheme for scheme, _ in pairs}
    if len(schemes) > 1:
        raise BadValue("endpoints that are all https:// or all not")
    return Endpoints(tuple(address for _, address in pairs), tls=schemes == {"https"})


def _endpoint(item: str) -> tuple[str, str]:
    """Return the scheme, http or https, and the address."""
    if item.lower().startswith("unix:"):
        path = item[len("unix:") :].removeprefix("//")
        if not path.startswith("/") or "\0" in path:
            raise BadValue(f"{_ENDPOINTS}; a socket has an absolute path")
        return "http", f"unix://{path}"
    scheme, separator, rest = item.rpartition("://")
    if separator:
        if scheme.lower() not in ("http", "https"):
            raise BadValue(f"{_ENDPOINTS}; the scheme {scheme!r} is not http or https")
        parts = urlsplit(f"//{rest}")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise BadValue(f"{_ENDPOINTS}; a URL ends after the port")
        rest = rest.rstrip("/")
    try:
        tiers = _places(rest, ETCD_PORT)
    except BadTiers as error:
        raise BadValue(f"{_ENDPOINTS}; {str(error).split(';')[0]}") from None
    if len(tiers) != 1:
        raise BadValue(f"{_ENDPOINTS}; one of them is empty")
    return scheme.lower() or "http", str(tiers[0])


def _places(text: str, port: int) -> tuple[Tier, ...]:
    """Parse as a list of tiers with one host each. Raises `BadTiers`."""
    if "|" in text:
        raise BadTiers("'|' separates the masters of a tier, nothing else")
    return parse_tiers(text, port)


def _bare_ipv6(text: str) -> bool:
    return text.count(":") > 1 and not text.startswith("[")


def _number(expected: str, least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = decimal(text)
        except ValueError:
            raise BadValue(f"{expected}, in digits 0-9 as 25 or 0.5") from None
        if not least <= number <= most:
            raise BadValue(expected)
        return number

    return parse
