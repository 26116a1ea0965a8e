"""Settings: the environment parsed and validated once, into frozen values.

A setting is one row in `variables`. `parse` turns texts into `Settings`; `load` adds
what needs the running system. Both report every mistake in one go.
"""

from kontrol.settings.load import examine, host_facts, load
from kontrol.settings.parse import Settings, assemble, parse
from kontrol.settings.resolve import Mistake, SettingsError
from kontrol.settings.variables import FACTS, SECRETS, Variable

__all__ = [
    "FACTS",
    "SECRETS",
    "Mistake",
    "Settings",
    "SettingsError",
    "Variable",
    "assemble",
    "examine",
    "host_facts",
    "load",
    "parse",
]
