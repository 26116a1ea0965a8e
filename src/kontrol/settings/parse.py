"""From an environment to `Settings`: the rules between variables, and what the process runs with.

A rule is a function here; what concerns one variable alone is in its row. Pure: the same
environment makes the same settings. Every mistake is reported in one go.
"""

import dataclasses
from collections.abc import Mapping
from logging import WARNING
from types import MappingProxyType
from typing import Literal, TypeVar, cast

from kontrol.ensemble.tiers import BadTiers, Tier, parse_tiers
from kontrol.settings import values
from kontrol.settings import variables as v
from kontrol.settings.resolve import (
    MASTER,
    NOTHING,
    Booted,
    Entry,
    Mistake,
    Resolved,
    SettingsError,
    resolve,
)
from kontrol.settings.variables import Variable

ZONE_LABEL = "topology.kubernetes.io/zone"  # of a node, where KONTROL_ZONE is not set

_T = TypeVar("_T")
_NONE_FOUND: Mapping[str, str] = MappingProxyType({})
_PAIRS = (
    (v.ETCD_CERT, v.ETCD_KEY),
    (v.ETCD_USER, v.ETCD_PASSWORD_FILE),
    (v.TLS_CERT, v.TLS_KEY),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a process runs with: `settings[v.TTL]` is the value of a row of the table.

    A row without a value has None, which its type then says. `tiers` are those to report to (none
    without an agent); `argv` is the callback's, ready to execute, empty without one; `notes` are
    lines to log once at the start, (level, text) as `logging` has them.
    """

    by_name: Mapping[str, object]
    tiers: tuple[Tier, ...] = ()
    argv: tuple[str, ...] = ()
    notes: tuple[tuple[int, str], ...] = ()

    def __getitem__(self, variable: Variable[_T]) -> _T:
        return cast("_T", self.by_name.get(variable.name))

    def replace(self, variable: Variable[_T], value: _T) -> "Settings":
        """Return the same settings, but for the value of one variable."""
        changed = MappingProxyType({**self.by_name, variable.name: value})
        return dataclasses.replace(self, by_name=changed)

    @property
    def agent(self) -> bool:
        """Whether to report keepalives."""
        return "agent" in self[v.MODE]

    @property
    def master(self) -> bool:
        """Whether to maintain the ensemble."""
        return "master" in self[v.MODE]

    @property
    def verbose(self) -> bool:
        """Whether to log debug lines."""
        return "verbose" in self[v.MODE]

    @property
    def tls(self) -> bool:
        """Whether connections of this process are encrypted with TLS."""
        return self[v.TLS_CERT] is not None or (self.master and self.etcd.tls)

    @property
    def app(self) -> str:
        """The ensemble's name."""
        return self[v.LABELS]["app"]

    @property
    def role(self) -> str:
        """The pod's part in the ensemble."""
        return self[v.LABELS]["role"]

    @property
    def zone(self) -> str | None:
        """The zone of the node: as set, else by the node's label."""
        return self[v.ZONE] or self[v.NODE_LABELS].get(ZONE_LABEL)

    @property
    def etcd(self) -> values.Endpoints:
        """Where etcd is; no endpoints if none is set, which a master requires."""
        return self[v.ETCD] or values.Endpoints((), tls=False)

    @property
    def invoke(self) -> Literal["off", "keys", "insecure"]:
        """Which clients may run commands: none, holders of keys, or all."""
        return self[v.INVOKE] or ("off" if self[v.KEYS] is None else "keys")


def parse(environ: Mapping[str, str], found: Mapping[str, str] = _NONE_FOUND) -> Settings:
    """Return the settings of an environment.

    `found` holds texts for the variables named in `FACTS`, as discovered where the process runs;
    the environment goes before them. Raises `SettingsError` with every mistake.
    """
    return assemble(check(environ, found))


def assemble(resolved: Resolved) -> Settings:
    """Return the settings. Raises `SettingsError` if there are mistakes."""
    if resolved.mistakes:
        raise SettingsError(resolved.mistakes)
    return Settings(
        MappingProxyType(resolved.values), resolved.tiers, resolved.argv, tuple(resolved.notes)
    )


def check(
    environ: Mapping[str, str], found: Mapping[str, str] = _NONE_FOUND, booted: Booted = NOTHING
) -> Resolved:
    """Resolve, and check values against each other: mistakes are listed in the result."""
    result = resolve(environ, found, booted)
    mode = result.get(v.MODE) or frozenset()
    for variable in v.VARIABLES:
        needed = variable.required and (not variable.used_by or variable.used_by in mode)
        if needed and variable.name not in result.entries:
            result.refuse(variable, variable.required)
    for one, other in _PAIRS:
        for missing, present in ((one, other), (other, one)):
            if missing.name not in result.entries and present.name in result.entries:
                result.refuse(missing, f"a value, since {present.name} is set")
    _check_ports(result)
    _check_zone(result)
    _check_damper(result)
    _check_invoke(result)
    _check_callback(result)
    _check_published(result)
    _check_tiers(result, agent="agent" in mode)
    if "master" in mode:
        _check_etcd(result)
    return result


def _check_ports(result: Resolved) -> None:
    port = result.get(v.PORT)
    if port is not None and port == result.get(v.HTTP_PORT):
        result.refuse(v.HTTP_PORT, f"another port than {v.PORT.name}, or 0 for none")


def _check_zone(result: Resolved) -> None:
    """Check the zone in the node's labels: keepalives carry it if KONTROL_ZONE is not set."""
    labels = result.get(v.NODE_LABELS) or {}
    if ZONE_LABEL not in labels or v.ZONE.name in result.entries:
        return
    try:
        values.name(labels[ZONE_LABEL])
    except values.BadValue as error:
        result.refuse(v.NODE_LABELS, f"{ZONE_LABEL} to be {error}")


def _check_damper(result: Resolved) -> None:
    damper, most = result.get(v.DAMPER), result.get(v.DAMPER_MAX)
    if damper is not None and most is not None and most < damper:
        result.refuse(v.DAMPER_MAX, f"at least {v.DAMPER.name}, {damper:g}")


def _check_invoke(result: Resolved) -> None:
    if result.get(v.INVOKE) != "insecure":
        return
    if v.KEYS.name in result.entries:
        result.refuse(v.INVOKE, f"nothing, or off, since {v.KEYS.name} is set")
    else:
        text = f"{v.INVOKE.name}=insecure: every client that reaches {v.PORT.name} may run commands"
        result.notes.append((WARNING, f"{text} here; set {v.KEYS.name} to restrict them"))


def _check_callback(result: Resolved) -> None:
    command, shell = result.get(v.CALLBACK), result.get(v.SHELL_CALLBACK)
    if command is not None and shell is not None:
        try:
            result.argv = values.argv(command, shell=shell)
        except values.BadValue as error:
            result.refuse(v.CALLBACK, str(error))


def _check_published(result: Resolved) -> None:
    if v.ON_PUBLISHED.name in result.entries and v.PUBLISHED.name not in result.entries:
        result.refuse(v.PUBLISHED, f"a file, since {v.ON_PUBLISHED.name} is set")


def _check_tiers(result: Resolved, *, agent: bool) -> None:
    """Parse the tiers of the annotation, else what debug mode presumes."""
    annotations = result.get(v.ANNOTATIONS)
    if annotations is None:
        return  # a mistake already
    if text := annotations.get(MASTER, "").strip():
        result.entries[MASTER] = Entry(text, "annotation")
    elif result.host is not None:
        result.entries[MASTER] = Entry(result.host, "debug mode")
    elif agent:
        expected = f'the tiers to report to, as {{"{MASTER}": "masters:8000"}}'
        result.mistakes.append(Mistake(v.ANNOTATIONS.name, None, expected))
    if not agent or MASTER not in result.entries:
        return
    try:
        result.tiers = parse_tiers(result.entries[MASTER].text, result.get(v.PORT) or 1)
        if not result.tiers and v.PORT.name in result.values:
            result.mistakes.append(Mistake(MASTER, text, "at least one tier"))
    except BadTiers as error:
        result.mistakes.append(Mistake(MASTER, text, f"a comma list of tiers; {error}"))


def _check_etcd(result: Resolved) -> None:
    etcd = result.get(v.ETCD)
    if etcd is None:
        return  # a mistake already
    if not etcd.addresses and v.DATA.name not in result.entries:
        result.refuse(v.DATA, f"a folder for {v.ETCD.name}=embedded, since HOME is not set either")
    if etcd.tls:
        return
    for variable in (v.ETCD_CA, v.ETCD_CERT, v.ETCD_KEY):
        if variable.name in result.entries:
            result.refuse(variable, f"https:// endpoints in {v.ETCD.name} to go with it")
    if v.ETCD_USER.name in result.entries:
        result.notes.append(
            (WARNING, f"etcd's password is sent in the clear: {v.ETCD.name} is not https://")
        )
