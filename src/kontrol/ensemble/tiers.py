"""Tiers of masters as the annotation `kontrol.unity3d.com/master` lists them.

A comma list; each item is one tier: a DNS name or an address, and optionally a port. An IPv6
address with a port is written in brackets; without brackets it is all address, so that `fd00::1`
needs none. A DNS name stands for every master behind it. Without DNS, bars separate the masters of
one tier, and the last one has the port of all: `10.0.0.1|10.0.0.2:8000`.
"""

import ipaddress
import re
from typing import NamedTuple

from kontrol.ensemble.numbers import whole

_LABEL = re.compile(r"[0-9A-Za-z_](?:[0-9A-Za-z_-]{0,61}[0-9A-Za-z_])?\Z")
_ZONE = re.compile(r"[^%]*(?:%[0-9A-Za-z_.-]+)?\Z")
_MAX_NAME = 253  # the longest DNS name, RFC 1035
_EXPECTED = "as masters, masters:8000, 10.0.0.1:8000, fd00::1 or [fd00::1]:8000"


class BadTiers(ValueError):
    """A list of tiers that is not valid; the message names the item and what was expected."""


class Tier(NamedTuple):
    """One tier: DNS names or addresses without brackets, separated by bars, and the port of all.

    `str` returns a text that can be parsed again.
    """

    host: str
    port: int

    @property
    def hosts(self) -> list[str]:
        """The names and addresses, one by one."""
        return self.host.split("|")

    def __str__(self) -> str:
        hosts = "|".join(f"[{host}]" if ":" in host else host for host in self.hosts)
        return f"{hosts}:{self.port}"


def parse_tiers(text: str, default_port: int) -> tuple[Tier, ...]:
    """Return the tiers in the order of `text`, each once; none if `text` is blank.

    Names are in lower case without a final dot, IPv6 in its short form. Raises `BadTiers`.
    """
    if not text.strip():
        return ()
    tiers = [_tier(item.strip(), text, default_port) for item in text.split(",")]
    return tuple(dict.fromkeys(tiers))


def _tier(item: str, text: str, default_port: int) -> Tier:
    if not item:
        raise BadTiers(f"an item of {text!r} is empty; expected a comma list of tiers, {_EXPECTED}")
    *others, last = item.split("|")
    hosts = [_host(_alone(other.strip(), item), item) for other in others]
    host, port = _split(last.strip())
    hosts.append(_host(host, item))
    return Tier("|".join(hosts), default_port if port is None else _port(port, item))


def _alone(part: str, item: str) -> str:
    host, port = _split(part)
    if port is not None:
        raise BadTiers(
            f"tier {item!r} has a port at {part!r}; expected one port for all, at the end"
        )
    return host


def _split(item: str) -> tuple[str, str | None]:
    """Split host and port; None if there is no port."""
    if "/" in item:
        raise BadTiers(f"tier {item!r} has a slash; expected no scheme and no path, {_EXPECTED}")
    if item.startswith("["):
        host, bracket, rest = item[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")):
            raise BadTiers(f"tier {item!r} has bad brackets; expected a tier {_EXPECTED}")
        return host, rest[1:] if rest else None
    if item.count(":") > 1:
        return item, None
    host, colon, port = item.partition(":")
    return host, port if colon else None


def _port(text: str, item: str) -> int:
    try:
        return whole(text, 1, 65535)
    except ValueError:
        raise BadTiers(
            f"tier {item!r} has port {text!r}; expected a port from 1 to 65535"
        ) from None


def _host(host: str, item: str) -> str:
    if ":" in host:
        try:
            if not _ZONE.match(host):
                raise ValueError("its zone is not the name of an interface")
            return str(ipaddress.IPv6Address(host))
        except ValueError as error:
            raise BadTiers(
                f"tier {item!r} is not an IPv6 address ({error}); expected a tier {_EXPECTED}"
            ) from None
    name = host.removesuffix(".").lower()
    labels = name.split(".")
    # A name may not end in a number (RFC 1123): 10.0.0.300 is a slip, not a name to look up.
    if labels[-1].isdecimal():
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError as error:
            raise BadTiers(
                f"tier {item!r} is not an IPv4 address ({error}); expected a tier {_EXPECTED}"
            ) from None
    if len(name) > _MAX_NAME or not all(_LABEL.match(label) for label in labels):
        raise BadTiers(
            f"tier {item!r} is neither a DNS name nor an address; expected a tier {_EXPECTED}"
        )
    return name
