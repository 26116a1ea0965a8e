"""Settings: the environment parsed and validated once, into frozen values.

`variables` is the table of what can be set. `parse` is the pure way from texts to `Settings`;
`load` adds what only the running system can tell. Both report every mistake in one go.
"""

from kontrol.settings.errors import Mistake, SettingsError
from kontrol.settings.load import examine, host_facts, load
from kontrol.settings.model import (
    BootSettings,
    CallbackSettings,
    EtcdSettings,
    NodeFacts,
    PodFacts,
    SecuritySettings,
    Settings,
)
from kontrol.settings.parse import assemble, parse
from kontrol.settings.variables import FACTS, SECRETS

__all__ = [
    "FACTS",
    "SECRETS",
    "BootSettings",
    "CallbackSettings",
    "EtcdSettings",
    "Mistake",
    "NodeFacts",
    "PodFacts",
    "SecuritySettings",
    "Settings",
    "SettingsError",
    "assemble",
    "examine",
    "host_facts",
    "load",
    "parse",
]
