"""A pod: its keepalive record, parsed strictly, and its place in the ensemble.

A *keepalive* is the JSON object that an agent sends. A *pod* is the same fields with a sequence
number from the masters. *Identity* is the pair (`id`, `key`); an *incarnation* is one process of
that identity, named by its `nonce`. Within an identity, (`nonce`, `n`) orders records in time.

The names in a record reach callbacks, which are shell scripts. So they have only characters
without a meaning to a shell, and no part of one begins like an option or a hidden file.

Every refusal is a `BadRecord` that names the field, the value and what was expected.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

from kontrol.ensemble.canonical import JSON, NotJSON, canonical, parse
from kontrol.ensemble.live import attach, parse_live, split

MAX_BYTES = 64 * 1024
MAX_DEPTH = 32
MAX_NAME = 253  # characters: the longest DNS name, RFC 1035
MAX_COUNTER = 2**53 - 1  # of `n`: beyond it, not every JSON reader is exact
KEY = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_-]{0,63}\Z")
KEY_RULE = "1 to 64 of the characters 0-9 A-Z a-z _ -, not beginning with -"
NAME = re.compile(r"[0-9A-Za-z_:][0-9A-Za-z_:.-]*(/[0-9A-Za-z_:][0-9A-Za-z_:.-]*)*\Z")
NAME_RULE = (
    f"1 to {MAX_NAME} of the characters 0-9 A-Z a-z . _ : / -, each part between slashes beginning "
    "with none of . -"
)
NONCE = re.compile(r"[0-9a-f]{24}\Z")

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MAX_STORED_COUNTER = 2**63 - 1
_VERSION = re.compile(r"[0-9A-Za-z_][0-9A-Za-z._+~:-]{0,63}\Z")
_STORED_NONCE = re.compile(r"[0-9A-Za-z_-]{1,64}\Z")
_VERSION_RULE = "1 to 64 of the characters 0-9 A-Z a-z . _ + ~ : -, the first a letter, digit or _"
_NOT_IN_NAMES = re.compile(r"[^0-9A-Za-z_:./-]")

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class BadRecord(ValueError):
    """A keepalive that is not valid: which field, its value, and what was expected."""

    def __init__(self, field_name: str, value: object, expected: str) -> None:
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"{field_name} is {shown}; expected {expected}")
        self.field = field_name


def key_of(address: str) -> str:
    """Return the key of an IPv4 or IPv6 address: the big-endian integer in base 62.

    Digits, then lower case, then upper case. IPv6 is padded to 22 digits, so that no two addresses
    have one key; an IPv4-mapped address has the key of the IPv4 one. Raises `BadRecord`.
    """
    return _key_of(_address(address))


def check_unicast(address: str) -> None:
    """Raise `BadRecord` if this is not the address of one host: loopback is, 0.0.0.0 is not."""
    _check_unicast(_address(address), address)


def safe_name(text: str) -> str:
    """Return a name of a former version as `NAME` has it, with `_` for other characters."""
    if len(text) <= MAX_NAME and NAME.match(text):
        return text
    text = _NOT_IN_NAMES.sub("_", text[: MAX_NAME - 1])
    return text if NAME.match(text) else "_" + text.replace("/", "_")


def _address(address: str) -> _Address:
    """Return the address; an IPv4-mapped one is IPv4. Raises `BadRecord`."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        raise BadRecord("ip", address, "an IPv4 or IPv6 address") from None
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            raise BadRecord("ip", address, "an address without a zone, as fe80::1")
        return ip.ipv4_mapped or ip
    return ip


def _key_of(ip: _Address) -> str:
    number, digits = int(ip), ""
    while number:
        number, digit = divmod(number, 62)
        digits = _DIGITS[digit] + digits
    return digits.rjust(22 if ip.version == 6 else 1, "0")


def _check_unicast(ip: _Address, shown: str) -> None:
    # By its first octet: ipaddress takes twelve times as long, and this is done per keepalive.
    first = ip.packed[0]
    if ip.version == 6:
        several = first == 0xFF or not int(ip)
    else:  # "this network", multicast, and broadcast; 240/4 is used within clouds
        several = first == 0 or 224 <= first < 240 or int(ip) == 0xFFFFFFFF
    if several:
        expected = "the address of one host, as 10.0.0.7 or fd00::7"
        raise BadRecord("ip", shown, f"{expected}, no multicast, broadcast or unspecified one")


@dataclass(frozen=True, slots=True)
class Keepalive:
    """What an agent reports. `n` is None and `nonce` is empty from agents that send none.

    `more` has the optional fields (`port`, `eip`, `node`, `zone`, `version`) and every unknown one,
    unchanged. `named` says that `key` was configured, and is not that of the address. `live` is the
    JSON text of the live facts, None if the keepalive says nothing of them; no pod has it.
    """

    app: str
    id: str
    ip: str
    key: str
    role: str
    payload: JSON = ""
    nonce: str = ""
    n: int | None = None
    down: bool = False
    named: bool = False
    more: Mapping[str, JSON] = field(default_factory=dict)
    live: str | None = None

    def encode(self) -> str:
        """Return the JSON text to send. Raises `NotJSON` if a value cannot be JSON."""
        record: dict[str, JSON] = {
            **self.more,
            "app": self.app,
            "id": self.id,
            "ip": self.ip,
            "key": self.key,
            "role": self.role,
            "payload": self.payload,
        }
        if self.nonce:
            record["nonce"] = self.nonce
        if self.n is not None:
            record["n"] = self.n
        if self.down:
            record["down"] = True
        if self.named:
            record["named"] = True
        text = canonical(record).decode("utf-8")
        return text if self.live is None else attach(text, self.live)


@dataclass(frozen=True)
class Pod:
    """A pod of the ensemble: its last record and its sequence number."""

    seq: int
    app: str
    id: str
    ip: str
    key: str
    role: str
    payload: JSON = ""
    nonce: str = ""
    n: int | None = None
    more: Mapping[str, JSON] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Keepalive, seq: int) -> "Pod":
        """Make a pod of a keepalive and its sequence number."""
        return cls(
            seq=seq,
            app=record.app,
            id=record.id,
            ip=record.ip,
            key=record.key,
            role=record.role,
            payload=record.payload,
            nonce=record.nonce,
            n=record.n,
            more=record.more,
        )

    def public(self) -> dict[str, JSON]:
        """Return what the callback sees: everything except the counter `n`."""
        return {
            **self.more,
            "app": self.app,
            "id": self.id,
            "ip": self.ip,
            "key": self.key,
            "role": self.role,
            "seq": self.seq,
            "nonce": self.nonce,
            "payload": self.payload,
        }

    @cached_property
    def canonical(self) -> bytes:
        """The canonical JSON of `public()`, of which the digest is made."""
        return canonical(self.public())

    @cached_property
    def hash(self) -> str:
        """32 hex digits, which change with anything that the callback sees of this pod."""
        from hashlib import md5  # agents and commands hash nothing

        return md5(self.canonical, usedforsecurity=False).hexdigest()

    def encode(self) -> bytes:
        """Return the record as stored."""
        if self.n is None:
            return self.canonical
        return canonical({**self.public(), "n": self.n})

    @classmethod
    def decode(cls, raw: bytes) -> "Pod":
        """Read a record that `encode` wrote; its nonce may have a former version's form.

        Raises `BadRecord`.
        """
        record = _object(raw)
        seq = record.pop("seq", None)
        if not isinstance(seq, int) or isinstance(seq, bool) or seq < 0:
            raise BadRecord("seq", seq, "a number from 0")
        parsed = _keepalive(record, stored=True)
        check_unicast(parsed.ip)
        return cls.of(parsed, seq)


def parse_keepalive(raw: str | bytes) -> Keepalive:
    """Parse the JSON text of a keepalive. The key is that of the address, unless it is `named`.

    Raises `BadRecord` if the text is over 64 KiB without live facts at its end, not an object, or
    nested deeper than 32, if a required field (`app`, `id`, `ip`, `key`, `role`) is missing, or if
    any field has the wrong type, form, size or range.
    """
    text = raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass")
    record, live = _with_live(text)
    record.pop("seq", None)  # only masters give numbers
    parsed = replace(_keepalive(record), live=live)
    ip = _address(parsed.ip)
    _check_unicast(ip, parsed.ip)
    return parsed if parsed.named else replace(parsed, key=_key_of(ip))


def comes_before(record: Keepalive, nonce: str, n: int | None) -> bool:
    """Tell whether a record is older than one with (`nonce`, `n`).

    Without a counter the last write wins. So it does over a nonce of another form and a counter
    beyond its range: no agent of ours sends them, and a version that did not refuse them may have
    left them in the store.
    """
    if not record.nonce or record.n is None or n is None:
        return False
    if n > MAX_COUNTER or not NONCE.match(nonce):
        return False
    return (record.nonce, record.n) < (nonce, n)


def _with_live(text: bytes) -> tuple[dict[str, JSON], str | None]:
    """Read the fields of a keepalive, and the text of its live facts, wherever these are.

    Raises `BadRecord`.
    """
    head, tail = split(text)
    if tail:
        try:
            parse_live(tail)
            record = _sized(head)
        except (NotJSON, BadRecord):
            pass  # not as agents of ours send it, or invalid
        else:
            if "live" in record:
                raise BadRecord("live", tail, "the member once")
            return record, tail.decode("utf-8")
    record = _sized(text)
    if "live" not in record:
        return record, None
    live = canonical(record.pop("live"))
    try:
        parse_live(live)
    except NotJSON as error:
        raise BadRecord("live", live, f"JSON of live facts ({error})") from None
    return record, live.decode("utf-8")


def _sized(text: bytes) -> dict[str, JSON]:
    if len(text) > MAX_BYTES:
        raise BadRecord("record", f"{len(text)} bytes", f"at most {MAX_BYTES} bytes of JSON")
    return _object(text)


def _object(raw: str | bytes) -> dict[str, JSON]:
    try:
        record = parse(raw, depth=MAX_DEPTH)
    except NotJSON as error:
        raise BadRecord("record", raw, f"a JSON object ({error})") from None
    if not isinstance(record, dict):
        raise BadRecord("record", record, "a JSON object")
    return record


def _keepalive(record: dict[str, JSON], *, stored: bool = False) -> Keepalive:
    """Make a keepalive of the fields in `record`; the unknown ones stay as they are.

    The nonce and counter of a `stored` record need not have the form of an agent's. Raises
    `BadRecord`.
    """
    for name in ("app", "id", "ip", "key", "role"):
        if name not in record:
            raise BadRecord(name, None, "the field, which every keepalive must have")

    nonce = record.pop("nonce", "")
    most = _MAX_STORED_COUNTER if stored else MAX_COUNTER
    fields = Keepalive(
        app=_name("app", record.pop("app")),
        id=_name("id", record.pop("id")),
        ip=_text("ip", record.pop("ip")),
        key=_key("key", record.pop("key")),
        role=_name("role", record.pop("role")),
        payload=record.pop("payload", ""),
        nonce=_stored_nonce("nonce", nonce) if stored else _nonce("nonce", nonce),
        n=None if "n" not in record else _counter("n", record.pop("n"), most),
        down=_flag("down", record.pop("down", False)),
        named=_flag("named", record.pop("named", False)),
        more=record,
    )
    for name in ("eip", "node", "zone"):
        if name in record:
            _name(name, record[name])
    if "version" in record:
        _version("version", record["version"])
    if "port" in record:
        _port("port", record["port"])
    return fields


def _name(name: str, value: JSON) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME or not NAME.match(value):
        raise BadRecord(name, value, NAME_RULE)
    return value


def _text(name: str, value: JSON) -> str:
    if not isinstance(value, str):
        raise BadRecord(name, value, "a text")
    return value


def _version(name: str, value: JSON) -> str:
    if not isinstance(value, str) or not _VERSION.match(value):
        raise BadRecord(name, value, _VERSION_RULE)
    return value


def _key(name: str, value: JSON) -> str:
    if not isinstance(value, str) or not KEY.match(value):
        raise BadRecord(name, value, KEY_RULE)
    return value


def _nonce(name: str, value: JSON) -> str:
    if not isinstance(value, str) or not (value == "" or NONCE.match(value)):
        raise BadRecord(name, value, "24 of the digits 0-9 a-f, or none")
    return value


def _stored_nonce(name: str, value: JSON) -> str:
    if not isinstance(value, str) or not (value == "" or _STORED_NONCE.match(value)):
        raise BadRecord(name, value, "up to 64 of the characters 0-9 A-Z a-z _ -")
    return value


def _counter(name: str, value: JSON, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise BadRecord(name, value, f"a whole number from 0 to {most}")
    return value


def _flag(name: str, value: JSON) -> bool:
    if not isinstance(value, bool):
        raise BadRecord(name, value, "true or false")
    return value


def _port(name: str, value: JSON) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
        raise BadRecord(name, value, "a port from 1 to 65535")
    return value
