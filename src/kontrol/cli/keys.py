"""The commands that make, print and rotate the keys."""

from kontrol.cli.command import Command

COMMANDS: tuple[Command, ...] = ()
