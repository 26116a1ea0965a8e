"""The callback of the end-to-end tests: says that it started, then does what the test tells it.

Connects to the unix socket `$E2E_SOCKET`, sends one JSON line (what it was given), and reads JSON
lines, each a list of steps `[name, argument]`:

    print TEXT    to standard output
    write [NAME, TEXT]  to the file that a variable names
    stdout COUNT, stderr COUNT  that many bytes, in lines
    deaf -        ignore SIGTERM
    brood -       leave a child and its child, in sessions of their own, deaf
    orphan -      SIGKILL the parent
    hang -        never end
    hold -        beat every 10 ms until more steps come
    exit STATUS

Imports little: it is started often.
"""

import time

STARTED = time.monotonic()

import contextlib  # noqa: E402 - the time of the start comes first
import json  # noqa: E402
import os  # noqa: E402
import select  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402

Step = tuple[str, object]


def connect(message: dict[str, object]) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ["E2E_SOCKET"])
    connection.sendall(json.dumps(message).encode("utf-8") + b"\n")
    return connection


def read(variable: str) -> str | None:
    path = os.environ.get(variable)
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs 10 ms
        return file.read()


def breed() -> None:
    """Leave a process in a session of its own, and it another; both stay, deaf, with stdout."""
    here, there = os.pipe()
    if os.fork() == 0:
        os.fork()
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with connect({"kind": "descendant", "run": os.environ["RUN"]}):
            os.write(there, b"x")
            while True:
                signal.pause()
    for _ in range(2):
        os.read(here, 1)


def beat_until_told(connection: socket.socket) -> None:
    while not select.select([connection], [], [], 0.01)[0]:
        connection.sendall(b'{"beat": %.6f}\n' % time.monotonic())


def perform(connection: socket.socket, name: str, argument: object) -> None:
    match name, argument:
        case "print", str(text):
            sys.stdout.write(text)
            sys.stdout.flush()
        case "write", [str(variable), str(text)]:
            with open(os.environ[variable], "w", encoding="utf-8") as file:  # noqa: PTH123
                file.write(text)
        case "stdout" | "stderr", int(count):
            lines = (b"x" * 99 + b"\n") * 600
            while count > 0:
                count -= os.write(1 if name == "stdout" else 2, lines[:count])
        case "deaf", _:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "brood", _:
            breed()
        case "orphan", _:
            os.kill(os.getppid(), signal.SIGKILL)
        case "hang", _:
            while True:
                signal.pause()
        case "hold", _:
            beat_until_told(connection)
        case "exit", int(status):
            sys.exit(status)
        case _:
            raise ValueError(f"step {name!r} of {argument!r}; see the head of this file")


def main() -> None:
    files = {name: read(name) for name in ("PODS_FILE", "STATE_FILE", "CHANGES_FILE")}
    connection = connect(
        {
            "kind": "callback",
            "started": STARTED,
            "env": dict(os.environ),
            "stdin": sys.stdin.read(),
            "files": files,
        }
    )
    # Unbuffered: `hold` asks the socket whether there is more.
    with connection, connection.makefile("rb", buffering=0) as lines:
        while True:
            steps: list[Step] = json.loads(lines.readline() or b'[["exit", 99]]')
            for name, argument in steps:
                perform(connection, name, argument)
            if not steps or steps[-1][0] != "hold":
                return


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
