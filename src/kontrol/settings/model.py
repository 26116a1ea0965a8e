"""Settings as values: frozen, typed, complete. Nothing here knows where they came from.

Durations are seconds. A `Path` or address that is None was not given.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kontrol.ensemble.tiers import Tier


@dataclass(frozen=True, slots=True)
class PodFacts:
    """The pod as it describes itself. `key` is None if it follows from the address."""

    id: str
    ip: str
    namespace: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    key: str | None = None
    payload: Path | None = None

    @property
    def app(self) -> str:
        """The ensemble's name."""
        return self.labels["app"]

    @property
    def role(self) -> str:
        """The pod's part in the ensemble."""
        return self.labels["role"]


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """The node that the pod runs on. `host` is its name or address, `eip` its external address."""

    host: str | None
    eip: str | None
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    hostname: str | None = None
    zone: str | None = None
    region: str | None = None
    instance_type: str | None = None


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """Where etcd is: `endpoints` are `host:port` or `unix:///path`.

    There are none if it is `embedded`, or if none was given. `unsafe` lets the embedded one be a
    release that can lose data.
    """

    endpoints: tuple[str, ...]
    tls: bool = False
    embedded: bool = False
    unsafe: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    user: str | None = None
    password_file: Path | None = None


@dataclass(frozen=True, slots=True)
class CallbackSettings:
    """What to run on change: `argv` is ready to execute, the shell already in it if there is one.

    `command` is the line as it was given; `timeout` is None for no limit.
    """

    command: str
    shell: bool
    argv: tuple[str, ...]
    timeout: float | None


@dataclass(frozen=True, slots=True)
class SecuritySettings:
    """Keys, tokens and certificates by file, and whether remote commands are taken.

    `invoke` is `keys` if they are taken from holders of keys, `insecure` if from anyone.
    """

    keys: Path | None
    invoke: Literal["off", "keys", "insecure"]
    invoke_allow: Path | None
    token_file: Path | None
    tls_cert: Path | None
    tls_key: Path | None


@dataclass(frozen=True, slots=True)
class BootSettings:
    """Which cloud to ask (one of `values.CLOUDS`), and where telegraf's configuration goes."""

    cloud: str
    telegraf: Path


@dataclass(frozen=True, slots=True)
class Settings:
    """All that was configured. `mode` is expanded: with `debug` it holds every mode.

    `bind` is an address or `*`; `http_port` is 0 for none, and `names` are those that it is asked
    under; `tiers` are those to report to (none on a mere master); `brake` is a percentage;
    `max_pods`, `max_bytes` and `max_joins` bound what is stored; `callback` is None without one;
    `ask` is whom commands ask, as text; `notes` are lines to log once at the start, as (level,
    text) of `logging`.
    """

    mode: frozenset[str]
    port: int
    bind: str
    http_port: int
    names: tuple[str, ...]
    pod: PodFacts
    node: NodeFacts
    tiers: tuple[Tier, ...]
    etcd: EtcdSettings
    ttl: float
    damper: float
    damper_max: float
    fover: float
    callback: CallbackSettings | None
    brake: float
    max_pods: int
    max_bytes: int
    max_joins: int
    security: SecuritySettings
    log: Literal["text", "json"]
    statsd: Tier | None
    data: Path | None
    control: Path | None
    boot: BootSettings
    ask: str | None = None
    notes: tuple[tuple[int, str], ...] = ()

    @property
    def agent(self) -> bool:
        """Whether to report keepalives."""
        return "agent" in self.mode

    @property
    def master(self) -> bool:
        """Whether to keep the ensemble."""
        return "master" in self.mode

    @property
    def verbose(self) -> bool:
        """Whether to log debug lines."""
        return "verbose" in self.mode
