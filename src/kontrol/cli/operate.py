"""The commands that look at the ensemble through a master, and steer it."""

from kontrol.cli.command import Command

COMMANDS: tuple[Command, ...] = ()
