"""The commands that save and restore what the masters keep, past them, in etcd."""

from kontrol.cli.command import Command

COMMANDS: tuple[Command, ...] = ()
