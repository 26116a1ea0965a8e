"""Sends a command to an automaton, as `socat` does, with a timeout; without an event loop."""

import socket
import time

from automaton.protocol import decode, encode


class Unreachable(Exception):
    """No automaton answers at the socket."""


def ask(path: str, command: str, timeout: float | None = None) -> str:
    """Send one command; return its answer, without the end of the line.

    `timeout` is in seconds, for the whole exchange. Raises `TimeoutError`, and `Unreachable` if
    there is no automaton at `path` or it ended before it answered.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            _limit(connection, deadline)
            connection.connect(path)
            connection.sendall(encode(command))
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while not answer.endswith(b"\n"):
                _limit(connection, deadline)
                chunk = connection.recv(65536)
                if not chunk:
                    raise Unreachable(f"{path}: the automaton ended before it answered")
                answer += chunk
    except TimeoutError:
        raise
    except OSError as error:
        raise Unreachable(f"{path}: {error.strerror}; is an automaton running there?") from error
    return decode(answer.rstrip(b"\n"))


def _limit(connection: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)
