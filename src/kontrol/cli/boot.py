"""The commands that find what the pod is, and become what it runs."""

from kontrol.cli.command import Command

COMMANDS: tuple[Command, ...] = ()
