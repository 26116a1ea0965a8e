"""The commands that run commands on pods."""

from kontrol.cli.command import Command

COMMANDS: tuple[Command, ...] = ()
