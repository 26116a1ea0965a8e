"""From an environment to `Settings`: what each value must be to the others, and the assembly.

Pure: same environment, same settings. Everything that is wrong is reported in one go.
"""

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from kontrol.ensemble.tiers import BadTiers, Tier, parse_tiers
from kontrol.settings import values
from kontrol.settings import variables as v
from kontrol.settings.booted import NOTHING, Booted
from kontrol.settings.errors import Mistake, SettingsError
from kontrol.settings.model import (
    BootSettings,
    CallbackSettings,
    EtcdSettings,
    NodeFacts,
    PodFacts,
    SecuritySettings,
    Settings,
)
from kontrol.settings.resolve import MASTER, Entry, Resolved, resolve

ZONE_LABEL = "topology.kubernetes.io/zone"  # of a node, where KONTROL_ZONE is not set

_NOTHING: Mapping[str, str] = MappingProxyType({})
_TOGETHER = (
    (v.ETCD_CERT, v.ETCD_KEY),
    (v.ETCD_USER, v.ETCD_PASSWORD_FILE),
    (v.TLS_CERT, v.TLS_KEY),
)
_REQUIRED = (
    (v.ID, "the pod's name; none was found"),
    (v.IP, "the pod's address; none was found"),
    (v.LABELS, 'the pod\'s labels, as {"app": "redis", "role": "cache"}; none were found'),
)


def parse(environ: Mapping[str, str], found: Mapping[str, str] = _NOTHING) -> Settings:
    """Return the settings that `environ` asks for.

    `found` holds texts for the variables named in `FACTS`, as discovered where the process runs;
    the environment goes before them. Raises `SettingsError` with every mistake.
    """
    return assemble(judge(environ, found))


def judge(
    environ: Mapping[str, str], found: Mapping[str, str] = _NOTHING, booted: Booted = NOTHING
) -> Resolved:
    """Resolve, and check values against each other: mistakes are listed in the result."""
    result = resolve(environ, found, booted)
    mode = result.get(v.MODE) or frozenset()
    for variable, expected in _REQUIRED:
        if variable.name not in result.entries:
            result.refuse(variable, expected)
    for one, other in _TOGETHER:
        for missing, present in ((one, other), (other, one)):
            if missing.name not in result.entries and present.name in result.entries:
                result.refuse(missing, f"a value, since {present.name} is set")
    _check_ports(result)
    _check_zone(result)
    _check_damper(result)
    _check_invoke(result)
    _check_callback(result)
    _check_tiers(result, agent="agent" in mode)
    if "master" in mode:
        _check_etcd(result)
    return result


def assemble(resolved: Resolved) -> Settings:
    """Assemble the settings. Raises `SettingsError` if there are mistakes."""
    if resolved.mistakes:
        raise SettingsError(resolved.mistakes)
    get, require = resolved.get, resolved.require
    etcd = get(v.ETCD) or values.Endpoints((), tls=False)
    return Settings(
        mode=require(v.MODE),
        port=require(v.PORT),
        bind=require(v.BIND),
        http_port=require(v.HTTP_PORT),
        names=require(v.NAMES),
        pod=PodFacts(
            id=require(v.ID),
            ip=require(v.IP),
            namespace=require(v.NAMESPACE),
            labels=require(v.LABELS),
            annotations=require(v.ANNOTATIONS),
            key=get(v.POD_KEY),
            payload=get(v.PAYLOAD),
        ),
        node=NodeFacts(
            host=get(v.HOST),
            eip=get(v.EIP),
            labels=require(v.NODE_LABELS),
            annotations=require(v.NODE_ANNOTATIONS),
            hostname=get(v.HOSTNAME),
            zone=get(v.ZONE),
            region=get(v.REGION),
            instance_type=get(v.INSTANCE_TYPE),
        ),
        tiers=_tiers(resolved) if "agent" in require(v.MODE) else (),
        etcd=EtcdSettings(
            endpoints=etcd.addresses,
            tls=etcd.tls,
            embedded=v.ETCD.name in resolved.values and not etcd.addresses,
            unsafe=require(v.ETCD_UNSAFE) or "debug" in require(v.MODE),
            ca=get(v.ETCD_CA),
            cert=get(v.ETCD_CERT),
            key=get(v.ETCD_KEY),
            user=get(v.ETCD_USER),
            password_file=get(v.ETCD_PASSWORD_FILE),
        ),
        ttl=require(v.TTL),
        damper=require(v.DAMPER),
        damper_max=require(v.DAMPER_MAX),
        fover=require(v.FOVER),
        callback=_callback(resolved),
        brake=require(v.BRAKE),
        max_pods=require(v.PODS_BOUND),
        max_bytes=require(v.BYTES_BOUND),
        max_joins=require(v.JOINS_BOUND),
        security=SecuritySettings(
            keys=get(v.KEYS),
            invoke=_invoke(resolved),
            invoke_allow=get(v.INVOKE_ALLOW),
            token_file=get(v.TOKEN_FILE),
            tls_cert=get(v.TLS_CERT),
            tls_key=get(v.TLS_KEY),
        ),
        log=require(v.LOG),
        statsd=get(v.STATSD),
        data=get(v.DATA),
        control=get(v.CONTROL),
        boot=BootSettings(cloud=require(v.CLOUD), telegraf=require(v.TELEGRAF_CONF)),
        ask=get(v.MASTER),
        notes=tuple(resolved.notes),
    )


def _check_ports(result: Resolved) -> None:
    port = result.get(v.PORT)
    if port is not None and port == result.get(v.HTTP_PORT):
        result.refuse(v.HTTP_PORT, f"another port than {v.PORT.name}, or 0 for none")


def _check_zone(result: Resolved) -> None:
    """Judge the zone that the node's labels tell: keepalives carry it, unless it is set."""
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
        text = f"{v.INVOKE.name}=insecure: whoever reaches {v.PORT.name} runs commands here"
        result.notes.append((logging.WARNING, f"{text}; {v.KEYS.name} says who may"))


def _check_callback(result: Resolved) -> None:
    command = result.get(v.CALLBACK)
    if command is not None and result.get(v.SHELL_CALLBACK) is False:
        try:
            values.words(command)
        except values.BadValue as error:
            result.refuse(v.CALLBACK, str(error))


def _check_tiers(result: Resolved, *, agent: bool) -> None:
    """Find the tiers' text in the annotations (else what debug presumes) and check it."""
    annotations = result.get(v.ANNOTATIONS)
    if annotations is None:
        return  # refused already
    if text := annotations.get(MASTER, "").strip():
        result.entries[MASTER] = Entry(text, "annotation")
    elif result.host is not None:
        result.entries[MASTER] = Entry(result.host, "debug mode")
    elif agent:
        expected = f'the tiers to report to, as {{"{MASTER}": "masters:8000"}}'
        result.mistakes.append(Mistake(v.ANNOTATIONS.name, None, expected))
        return
    try:
        if agent and not _tiers(result) and v.PORT.name in result.values:
            result.mistakes.append(Mistake(MASTER, text, "at least one tier"))
    except BadTiers as error:
        result.mistakes.append(Mistake(MASTER, text, f"a comma list of tiers; {error}"))


def _check_etcd(result: Resolved) -> None:
    if v.ETCD.name not in result.entries:
        result.refuse(v.ETCD, f"etcd's endpoints (or {v.HOST.name} for its host), or embedded")
        return
    etcd = result.get(v.ETCD)
    if etcd is None:
        return  # refused already
    if not etcd.addresses and v.DATA.name not in result.entries:
        result.refuse(v.DATA, f"a folder for {v.ETCD.name}=embedded, since HOME is not set either")
    if etcd.tls:
        return
    for variable in (v.ETCD_CA, v.ETCD_CERT, v.ETCD_KEY):
        if variable.name in result.entries:
            result.refuse(variable, f"https:// endpoints in {v.ETCD.name} to go with it")
    if v.ETCD_USER.name in result.entries:
        result.notes.append(
            (logging.WARNING, f"etcd's password goes in the clear: {v.ETCD.name} is not https://")
        )


def _tiers(resolved: Resolved) -> tuple[Tier, ...]:
    entry, port = resolved.entries.get(MASTER), resolved.get(v.PORT)
    return () if entry is None else parse_tiers(entry.text, port or 1)


def _callback(resolved: Resolved) -> CallbackSettings | None:
    command = resolved.get(v.CALLBACK)
    if command is None:
        return None
    shell = resolved.require(v.SHELL_CALLBACK)
    argv = ("/bin/sh", "-c", command) if shell else values.words(command)
    return CallbackSettings(command, shell, argv, resolved.get(v.CALLBACK_TIMEOUT))


def _invoke(resolved: Resolved) -> Literal["off", "keys", "insecure"]:
    said = resolved.get(v.INVOKE)
    return said or ("off" if resolved.get(v.KEYS) is None else "keys")
