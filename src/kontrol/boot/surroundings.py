"""Where boot looks: everything outside the process that facts come from, as one value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kontrol.boot.cloud import PROVIDERS, Make
from kontrol.boot.kubernetes import ServiceAccount
from kontrol.boot.places import PODINFO
from kontrol.boot.waiting import Patience


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where facts are looked for.

    `system` are the facts of this host by name of variable; `machine` is what its firmware says;
    `cloud` is the value of KONTROL_CLOUD.
    """

    environ: Mapping[str, str]
    system: Mapping[str, str]
    machine: Mapping[str, str]
    patience: Patience
    account: ServiceAccount = field(default_factory=ServiceAccount)
    podinfo: Path = PODINFO
    cloud: str = "auto"
    providers: Mapping[str, Make] = field(default_factory=lambda: PROVIDERS)
