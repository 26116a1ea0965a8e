"""The table of commands: what each one does, and the module that has it.

This is all that `kontrol --help` needs. The module of a command is imported when that command is
given, so that no command waits for what others import (decision 0178).
"""

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from kontrol.cli.command import Command


class Row(NamedTuple):
    """A command: its name, its help (without a final dot), and the module that has it."""

    name: str
    help: str
    module: str

    def load(self) -> "Command":
        """Import the module, and return the command: `COMMANDS[name]` there."""
        command: Command = import_module(self.module).COMMANDS[self.name]
        return command

    @property
    def description(self) -> str:
        """The help as a sentence."""
        return f"{self.help[0].upper()}{self.help[1:]}."


_LOCAL = "kontrol.cli.local"
_OPERATE = "kontrol.cli.operate.commands"
_DESIRED = "kontrol.cli.operate.desired"
_ARCHIVE = "kontrol.cli.operate.archive"

INVOKE = Row(
    "invoke",
    "run a command on pods, and show its output as it comes",
    "kontrol.cli.invoke.commands",
)

ROWS = (
    Row("config", "print the settings in force, and where each value came from", _LOCAL),
    Row("leave", "deregister this pod now, for example from a preStop hook", _LOCAL),
    Row(
        "demo",
        "run a whole ensemble on this machine for half a minute, and show what happens",
        _LOCAL,
    ),
    Row("status", "show the state of the tier, and how to fix what is wrong", _OPERATE),
    Row("pods", "list the pods, or show one; --watch shows every change", _OPERATE),
    Row("state", "print the callback's current state, as JSON", _OPERATE),
    Row("runs", "list the latest runs of the callback", _OPERATE),
    Row("explain", "show why a run started and how it ended, or why nothing runs now", _OPERATE),
    Row("set", "set a value of the desired state, which the callback gets", _DESIRED),
    Row("get", "print the desired state, or one value of it, as JSON", _DESIRED),
    Row("unset", "remove a value from the desired state", _DESIRED),
    Row("run-now", "run the callback now, on the leader", _OPERATE),
    Row(
        "release",
        "release the brake: treat the missing pods as gone and run the callback",
        _OPERATE,
    ),
    Row("rollback", "restore the callback's state as it was after a run", _OPERATE),
    Row(
        "forget",
        "clear a pod's registration: delete its record, and accept its next report",
        _OPERATE,
    ),
    Row(
        "publish",
        "within a run of the callback: send agents a document, which they keep in a file",
        "kontrol.cli.publish",
    ),
    Row(
        "export",
        "save the tier's state, desired state, registrations and ledger as JSON (needs a master's "
        "settings)",
        _ARCHIVE,
    ),
    Row(
        "import",
        "restore an export into an unused tier, while no master runs (needs a master's settings)",
        _ARCHIVE,
    ),
    Row("completion", "print the completion script of a shell", "kontrol.cli.completion"),
    INVOKE,
    Row("keys", "make, print and rotate the keys of KONTROL_KEYS", "kontrol.cli.keys"),
    Row(
        "boot",
        "find what this pod and its node are, export it, and execute supervisord or COMMAND",
        "kontrol.cli.boot",
    ),
)
