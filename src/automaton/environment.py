"""The environment of scripts: our own, the state's `env`, what `SET` says, `$SOCKET`, `$INPUT`.

Each overrides the one before. All is bytes, as the kernel has it.
"""

from collections.abc import Mapping

from automaton.manifest import State
from automaton.protocol import CommandError, Set, encode

MAX_VARIABLES = 256
MAX_BYTES = 512 * 1024
"""Of all `SET` variables: with an input and a sane environment they stay below the 2 MiB that Linux
grants to arguments and environment together (a quarter of the stack's limit, execve(2))."""


class Environment:
    """What scripts are given. `base` is our own environment, `socket` the absolute path of ours."""

    def __init__(self, base: Mapping[bytes, bytes], socket: str) -> None:
        self._base = dict(base)
        self._socket = encode(socket)
        self._variables: dict[bytes, bytes] = {}

    def set(self, command: Set) -> None:
        """Set a variable for the scripts to come. Raises `CommandError` if there is no room."""
        held = {**self._variables, encode(command.name): encode(command.value)}
        size = sum(len(name) + len(value) for name, value in held.items())
        if len(held) > MAX_VARIABLES or size > MAX_BYTES:
            raise CommandError(
                f"{len(held)} variables would hold {size} bytes; at most {MAX_VARIABLES} and "
                f"{MAX_BYTES}: put large values in files"
            )
        self._variables = held

    def of(self, state: State, value: str) -> dict[bytes, bytes]:
        """Return the environment of a state's script whose input is `value`."""
        return {
            **self._base,
            **{encode(name): encode(text) for name, text in state.env.items()},
            **self._variables,
            b"SOCKET": self._socket,
            b"INPUT": encode(value),
        }
