"""`kontrol publish`: within a run of the callback, send agents a document.

It speaks to the leader that runs the callback, by the socket of the run (`master/runsocket.py`).
"""

import argparse
import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from kontrol.cli.command import DONE, REFUSED, UNANSWERED, USAGE, Command, say, seconds

# As the leader has them; a command does not load what only masters use.
_SOCKET = "RUN_SOCKET"
_MOST = 512 * 1024  # bytes that it takes; it says so of more
_LONGEST_ANSWER = 64 * 1024

_OUTSIDE = (
    f"this is no run of the callback (${_SOCKET} is not set): the command publishes within a run "
    "only, so that what is published is in order, and of the leader. To publish now, let the "
    "callback do it, and start it by `kontrol run-now`"
)


def _publish(options: argparse.Namespace, _others: list[str]) -> int:
    given = (options.document is not None) + (options.file is not None) + options.remove
    if given != 1:
        say("give one of JSON (- for standard input), --file FILE and --remove")
        return USAGE
    path = os.environ.get(_SOCKET)
    if not path:
        say(_OUTSIDE)
        return USAGE
    try:
        document = _document(options)
    except OSError as error:
        say(f"{options.file or 'standard input'}: {error.strerror or error}")
        return USAGE
    verb = "remove" if options.remove else "publish"
    head = json.dumps({verb: options.key}).encode() + b"\n"
    try:
        _ask(Path(path), head + document, options.timeout)
    except _Failure as failure:
        say(str(failure))
        return failure.status
    return DONE  # without a word: the callback's standard output is its state


def _document(options: argparse.Namespace) -> bytes:
    """Return the document, or a little more than may be sent. Raises `OSError`."""
    if options.remove:
        return b""
    if options.file not in (None, "-"):
        with Path(options.file).open("rb") as file:
            return file.read(_MOST + 1)
    if options.file == "-" or options.document == "-":
        return sys.stdin.buffer.read(_MOST + 1)
    return os.fsencode(options.document)


class _Failure(Exception):
    """Why it is not known to be published, and the exit status."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def _unknown(why: str) -> _Failure:
    return _Failure(
        UNANSWERED,
        f"{why}: the document may be published or not; publish it again, which changes nothing if "
        "it is",
    )


def _ask(path: Path, request: bytes, timeout: float) -> None:
    """Send the request, and read the answer. Raises `_Failure`."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        _connect(connection, path, timeout)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # it answers all the same
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
            with connection.makefile("rb") as lines:
                line = lines.readline(_LONGEST_ANSWER)
        except OSError as error:
            raise _unknown(f"no answer in {timeout:g} s ({error})") from None
    try:
        answer = json.loads(line)
        refused, version = answer.get("refused"), answer.get("version")
    except (ValueError, AttributeError):
        raise _unknown("the master ended before it answered") from None
    if refused is not None:
        raise _Failure(REFUSED, f"not published: {refused}")
    if not isinstance(version, int):
        raise _unknown(f"the master answered {line[:80]!r}")


def _connect(connection: socket.socket, path: Path, timeout: float) -> None:
    """Connect when there is room for one more that waits. Raises `_Failure`."""
    until = time.monotonic() + timeout
    while True:
        try:
            os.chdir(path.parent)  # the whole path may be longer than that of a socket may be
            return connection.connect(path.name)
        except BlockingIOError:  # its queue is full: unix(7)
            if time.monotonic() > until:
                why = f"not published: too many others are publishing for {timeout:g} s"
                raise _Failure(UNANSWERED, why) from None
            time.sleep(0.02)  # nothing tells when there is room
        except OSError as error:
            raise _Failure(
                REFUSED,
                f"not published: this run has ended; its master does not listen at {path} "
                f"({error.strerror or error})",
            ) from None


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "key", metavar="KEY", help="name of the document: 1 to 128 of 0-9 A-Z a-z . _ : / -"
    )
    parser.add_argument(
        "document",
        nargs="?",
        metavar="JSON",
        help="the document, or - to read it from standard input",
    )
    parser.add_argument("--file", metavar="FILE", help="read the document from FILE")
    parser.add_argument("--remove", action="store_true", help="remove the document of that key")
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long to wait for the leader (default: %(default)g)",
    )


COMMANDS = {
    "publish": Command(
        """kontrol publish primary '{"address": "10.0.0.3:6379"}'""",
        _publish,
        _configure,
        statuses="  2  wrong usage; or not within a run of the callback\n"
        "  4  no answer: the document may be published or not\n"
        "  5  refused: the run has ended, its leader leads no more, or the document is over a "
        "limit\n",
    ),
}
