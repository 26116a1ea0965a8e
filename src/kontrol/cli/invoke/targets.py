"""On which pods `kontrol invoke` runs a command: where the list comes from, and the selection.

Within a callback, the pods are those of `$PODS_FILE`, for which the run is, and the command is sent
in the name of the callback's tier, term and run; with `KONTROL_KEYS`, only masters may do that.
Elsewhere, a master is asked by ZeroRPC; with keys, as an operator if the folder has an operator's
key, else as a master.
"""

import asyncio
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from kontrol.cli.address import own_address
from kontrol.ensemble.canonical import JSON, NotJSON, canonical, parse
from kontrol.ensemble.numbers import whole
from kontrol.ensemble.tiers import BadTiers, Tier, parse_tiers
from kontrol.resolver import resolve as resolve_name
from kontrol.rpc.client import Client
from kontrol.rpc.errors import RemoteError, RpcError
from kontrol.rpc.limits import Limits
from kontrol.rpc.security.keys import Keyring, KeysError, Kind
from kontrol.settings import Mistake, SettingsError
from kontrol.settings import variables as v
from kontrol.settings.resolve import MASTER, NOTHING, Booted, Resolved, resolve
from kontrol_common.text import escaped

Record = Mapping[str, JSON]

VARIABLE = v.MASTER.name
_CALLBACK = ("TIER", "TERM_ID", "RUN", "PODS_FILE")  # set by a master for its callback
_TIMEOUT = 5.0  # seconds for one master
_LIST_DEPTH = 64  # a list of records, which are half as deep
_NEEDED = (v.PORT.name, v.BIND.name, v.ANNOTATIONS.name, v.KEYS.name)

LIMITS = Limits(frame=512 * 1024, readable=2 * 1024 * 1024, window=8)
"""Limits of a pod's answers: what is not printed yet is in memory, for a hundred pods."""

_FIELDS = ("id", "key", "seq", "role", "ip", "port", "nonce")
_GLOB = "*?["
_DEPTH = 32  # of the value of a condition


class NoMatch(Exception):
    """A selector matches no pod, or selectors and conditions together do not."""


class BadSelection(ValueError):
    """A condition that cannot be parsed; the message says what was expected."""


class Selection(NamedTuple):
    """The union of `selectors` (none: all pods), limited by roles and conditions.

    A selector is an id, a key, `#` and a number, or a glob of ids; a condition in `where` is a
    dotted path and a text.
    """

    selectors: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    where: tuple[tuple[str, str], ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of records that the conditions use."""
        return tuple(path.partition(".")[0] for path, _ in self.where)

    def choose(self, pods: Sequence[Record]) -> list[Record]:
        """Return the pods that match, in their order. Raises `NoMatch`.

        If one of the selectors matches nothing, that is a mistake: nothing is chosen.
        """
        for selector in self.selectors:
            if not any(is_named(pod, selector) for pod in pods):
                raise NoMatch(f"no pod has the id, key or number {selector!r} among {len(pods)}")
        chosen = [pod for pod in pods if self._matches(pod)]
        if not chosen:
            hint = ""
            if any(path.startswith("payload") for path, _ in self.where) and not any(
                "payload" in pod for pod in pods
            ):
                hint = ": masters send payloads only to clients with a key (KONTROL_KEYS)"
            raise NoMatch(f"no pod of {len(pods)} matches{hint}")
        return chosen

    def _matches(self, pod: Record) -> bool:
        named = not self.selectors or any(is_named(pod, one) for one in self.selectors)
        right = not self.roles or pod.get("role") in self.roles
        return named and right and all(has(pod, path, text) for path, text in self.where)


def is_named(pod: Record, selector: str) -> bool:
    """Return whether a selector matches this pod."""
    if selector.startswith("#"):
        return f"#{pod.get('seq')}" == selector
    if selector in (pod.get("id"), pod.get("key")):
        return True
    name = pod.get("id")
    glob = any(char in selector for char in _GLOB)
    return glob and isinstance(name, str) and fnmatch.fnmatchcase(name, selector)


def has(pod: Record, path: str, text: str) -> bool:
    """Return whether the value at `path` is the string `text`, or equals `text` parsed as JSON.

    A path is names of members separated by dots; in an array, numbers from 0.
    """
    value: JSON = dict(pod)
    for name in path.split("."):
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list):
            try:
                value = value[whole(name, 0, len(value) - 1)]
            except ValueError:
                return False
        else:
            return False
    if isinstance(value, str):
        return value == text
    try:
        return canonical(value) == canonical(parse(text, depth=_DEPTH))
    except NotJSON:
        return False


def condition(text: str) -> tuple[str, str]:
    """Split `payload.state=READY` into its path and its text. Raises `BadSelection`."""
    path, equals, wanted = text.partition("=")
    if not equals or not all(path.split(".")):
        raise BadSelection(f"{text!r}: expected a path and a value, as payload.state=READY")
    return path, wanted


class NoMaster(Exception):
    """No master listed the pods; the message names those that were asked, and why they did not."""


class Asker(NamedTuple):
    """Makes clients, with keys if there are any; `kind` is the kind of our own key."""

    keys: Keyring | None = None
    kind: Kind = "operator"

    def master(self, host: str, port: int) -> Client:
        """Return a client for a master. Raises `KeysError`."""
        return Client(host, port, keys=self.keys, as_=self.kind, to=("master",))

    def pod(self, host: str, port: int) -> Client:
        """Return a client for a pod, whose process may be a master too. Raises `KeysError`."""
        to: tuple[Kind, ...] = ("agent", "master")
        return Client(host, port, limits=LIMITS, keys=self.keys, as_=self.kind, to=to)


class Place(NamedTuple):
    """What the environment says: our keys, the tier, and the callback that runs this command.

    `fence` has the members of a request that agents fence it by; it is empty outside a callback.
    """

    asker: Asker
    tier: Tier
    pods_file: Path | None
    fence: Mapping[str, str | int]

    async def pods(self, *more: str) -> Sequence[Record]:
        """Return the pods, ordered by number, with the fields needed to select and reach them.

        The fields `more` are included if the master sends them. Raises `NoMaster`.
        """
        fields = dict.fromkeys((*_FIELDS, *more))  # all fields could exceed the size of an answer
        if self.pods_file is not None:
            return _records(_load(self.pods_file), str(self.pods_file))
        failures = []
        for host in await _hosts(self.tier):
            try:
                async with self.asker.master(host, self.tier.port) as client:
                    return _records(await client.call("pods", *fields, timeout=_TIMEOUT), host)
            except RemoteError as error:
                failures.append(f"{host}: {escaped(str(error))}")
            except RpcError as error:
                failures.append(str(error))
        raise NoMaster(
            f"no master listed the pods: {'; '.join(failures)}. Name one with --master or "
            f"{VARIABLE}, with the port of ZeroRPC ({v.PORT.name}), not that of REST"
        )


def find(environ: Mapping[str, str], master: str | None, booted: Booted = NOTHING) -> Place:
    """Read the environment. Raises `SettingsError` and `KeysError`."""
    resolved = resolve(environ, {}, booted)
    wrong = [mistake for mistake in resolved.mistakes if mistake.name in _NEEDED]
    if wrong:
        raise SettingsError(wrong)
    within = all(environ.get(name) for name in _CALLBACK)
    return Place(
        _asker(resolved.get(v.KEYS), within=within),
        _tier(resolved, environ, master),
        Path(environ["PODS_FILE"]) if within and master is None else None,
        _fence(environ) if within else {},
    )


def _fence(environ: Mapping[str, str]) -> Mapping[str, str | int]:
    numbers = {}
    for name in ("TERM_ID", "RUN"):
        try:
            numbers[name] = whole(environ[name], 0, 2**63 - 1)
        except ValueError:
            expected = "a number, as a callback is given"
            raise SettingsError([Mistake(name, environ[name], expected)]) from None
    return {"tier": environ["TIER"], "term": numbers["TERM_ID"], "run": numbers["RUN"]}


def _asker(folder: Path | None, *, within: bool) -> Asker:
    if folder is None:
        return Asker()
    keys = Keyring.load(folder)
    if within:
        keys.own("master")
        return Asker(keys, "master")
    try:
        keys.own("operator")
    except KeysError as error:
        try:
            keys.own("master")
        except KeysError:
            raise error from None  # which names the operator's key
        return Asker(keys, "master")
    return Asker(keys)


def _tier(resolved: Resolved, environ: Mapping[str, str], master: str | None) -> Tier:
    """Return the tier to ask: `--master`, `KONTROL_MASTER`, this master, the annotation's first.

    Without any of them, this host, at the address of `KONTROL_BIND`.
    """
    port = resolved.require(v.PORT)
    own = Tier(own_address(resolved), port)
    tier = _named(resolved, environ, master, port)
    if tier is None:
        return own
    source, named = tier
    if source == MASTER and "master" in (resolved.get(v.MODE) or ()):
        others = named.hosts if named.port == port else []
        return Tier("|".join(dict.fromkeys([own.host, *others])), port)
    return named


def _named(
    resolved: Resolved, environ: Mapping[str, str], master: str | None, port: int
) -> tuple[str, Tier] | None:
    """Return the tier that is named, and where; None if none is. Raises `SettingsError`."""
    annotations = resolved.get(v.ANNOTATIONS) or {}
    for source, text in (
        ("--master", master or ""),
        (VARIABLE, environ.get(VARIABLE, "").strip()),
        (MASTER, annotations.get(MASTER, "").strip()),
    ):
        if text:
            try:
                return source, _parse(text, port)
            except ValueError as error:  # BadTiers too
                raise SettingsError(
                    [Mistake(source, text, f"a tier of masters; {error}")]
                ) from None
    return None


def _parse(text: str, port: int) -> Tier:
    """Return the first tier of a list, or the hosts of URLs. Raises `ValueError`."""
    if "://" in text:  # those of REST, which is on the same hosts
        names = [urlsplit(url).hostname or "" for url in text.split("|")]
        text = "|".join(f"[{name}]" if ":" in name else name for name in names)
    tiers = parse_tiers(text, port)
    if not tiers:
        raise BadTiers("it names no host")
    return tiers[0]


async def _hosts(tier: Tier) -> Sequence[str]:
    """Return every address of the tier. Raises `NoMaster`."""
    found: list[str] = []
    for host in tier.hosts:
        try:
            async with asyncio.timeout(_TIMEOUT):
                found += await resolve_name(host, tier.port)
        except (OSError, TimeoutError) as error:
            if len(tier.hosts) == 1:
                why = str(error) or "its name was not resolved in time"
                raise NoMaster(f"{host}: {why}. Name another master with --master") from None
    return list(dict.fromkeys(found))


def _load(path: Path) -> object:
    try:
        return parse(path.read_bytes(), depth=_LIST_DEPTH)
    except (OSError, NotJSON) as error:
        raise NoMaster(f"PODS_FILE {path}: {error}") from None


def _records(answer: object, source: str) -> Sequence[Record]:
    if isinstance(answer, list) and all(isinstance(one, dict) and "id" in one for one in answer):
        return answer
    raise NoMaster(f"{source} did not answer with a list of pods, but {answer!r:.80}")
