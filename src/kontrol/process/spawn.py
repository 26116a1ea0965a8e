"""Starts a command as the guard's child: in a session of its own, killed when the guard dies.

The guard is small and has one thread, so a plain fork takes less than a millisecond and is safe.
`posix_spawn` supports neither the parent-death signal nor the folder. As much as possible is
prepared before the fork, because every page that the child writes to is copied.
"""

import contextlib
import errno
import json
import os
import re
import signal

from kontrol_common.processes import ENDING_SIGNALS, STRAY_SIGNALS, die_with_parent

# Characters of a path in a report, at most 2,400 bytes as JSON. It is read when the child has
# exited, and a pipe may hold only one page: with more, both ends would wait without end.
_SHOWN = 400

TYPE_CHECKING = False  # the guard does without typing, which costs 0.8 MB
if TYPE_CHECKING:
    from typing import Any

# Signals that the guard or its interpreter ignores, and its command must not.
_SIGNALS = {*ENDING_SIGNALS, *STRAY_SIGNALS, signal.SIGPIPE, signal.SIGXFSZ}


class SpawnError(Exception):
    """The reason why a command could not be started: an errno, and its path."""

    def __init__(self, number: int, path: str, stage: str) -> None:
        super().__init__(f"{stage} {path!r}: {os.strerror(number)}")
        self.report = {"errno": number, "path": path[:_SHOWN], "stage": stage}


class _TooLongError(Exception):
    """Comparing a text with a pattern took longer than its limit."""


def spawn(spec: bytes, stdio: list[int]) -> tuple[int, int]:
    """Fork and execute; return the process id, and a pipe for `failure` to read after its exit.

    `spec` is a JSON object: argv, env, cwd (a folder or null), its strings UTF-8 with
    surrogateescape; and optionally checks, pairs of a pattern and a text that must match it, with
    match_limit, the seconds of processor time for each. `stdio` are the descriptors for stdin,
    stdout and stderr.
    """
    command = json.loads(spec)
    argv = [_bytes(word) for word in command["argv"]]
    env = {_bytes(name): _bytes(value) for name, value in command["env"].items()}
    reader, writer = os.pipe()
    parent = os.getpid()
    # Signals wait until the child has its default handlers.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            _become(command, argv, env, stdio, parent=parent, report=writer)
    except OSError:
        os.close(reader)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(writer)
    return pid, reader


def failure(pipe: int) -> dict[str, object] | None:
    """Return what the child, which has exited, reported: the errno, path and stage, if any."""
    with os.fdopen(pipe, "rb") as file:
        report = file.read()
    return json.loads(report) if report else None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _become(
    command: "dict[str, Any]",
    argv: list[bytes],
    env: dict[bytes, bytes],
    stdio: list[int],
    *,
    parent: int,
    report: int,
) -> None:
    """Turn this child into the command. Never returns."""
    try:
        die_with_parent()
        if os.getppid() != parent:
            os._exit(127)  # the guard had died before
        os.setsid()
        for target, fd in enumerate(stdio):
            os.dup2(fd, target)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _check(command.get("checks", ()), command.get("match_limit", 0.0))
        if command["cwd"] is not None:
            _enter(command["cwd"])
        _execute(argv, env)
    except SpawnError as error:
        os.write(report, json.dumps(error.report).encode())
    except (OSError, ValueError) as error:  # ValueError: text that no system call accepts
        code = getattr(error, "errno", errno.EINVAL)
        os.write(report, json.dumps({"errno": code, "path": "", "stage": "start"}).encode())
    finally:
        os._exit(127)


def _check(checks: list[tuple[str, str]], limit: float) -> None:
    """Compare texts with their patterns. Raises SpawnError with the number of one that fails.

    Only the processor time of this process counts, so a busy machine refuses nothing. The engine
    handles signals while it matches. The patterns are the author's, and have been compiled before.
    """
    if not checks:
        return
    signal.set_wakeup_fd(-1)  # the descriptor is the guard's
    signal.signal(signal.SIGVTALRM, _give_up)
    for number, (pattern, text) in enumerate(checks, 1):
        compiled = re.compile(pattern)
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, limit)
            matched = compiled.fullmatch(text)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)  # it would continue after the exec
        except (_TooLongError, MemoryError):
            raise SpawnError(errno.ETIME, str(number), "check") from None
        if matched is None:
            raise SpawnError(errno.EINVAL, str(number), "check")
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)


def _give_up(*_: object) -> None:
    raise _TooLongError


def _enter(cwd: str) -> None:
    try:
        os.chdir(_bytes(cwd))
    except OSError as error:
        raise SpawnError(error.errno or 0, cwd, "folder") from None


def _execute(argv: list[bytes], env: dict[bytes, bytes]) -> None:
    """Execute `argv[0]`, found in the PATH of `env` as a shell does. Always raises SpawnError."""
    name = argv[0]
    folders = env.get(b"PATH", os.defpath.encode()).split(b":")
    candidates = [name] if b"/" in name else [os.path.join(f, name) for f in folders]  # noqa: PTH118
    number = errno.ENOENT
    denied: SpawnError | None = None
    for path in candidates:
        shown = path.decode("utf-8", "surrogateescape")
        try:
            os.execve(path, argv, env)  # noqa: S606  # without a shell, on purpose
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR} and not os.path.exists(path):  # noqa: PTH110
                number = error.errno if path == name else errno.ENOENT
                continue
            failed = SpawnError(error.errno or 0, shown, "execute")
            if error.errno != errno.EACCES:
                raise failed from None
            denied = denied or failed  # a later folder may have one that can be executed
    raise denied or SpawnError(number, name.decode("utf-8", "surrogateescape"), "execute")


def read_all(fd: int) -> bytes:
    """Return the rest of a file, and close it."""
    parts = []
    try:
        while part := os.read(fd, 1 << 20):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts)


def close_all(fds: list[int]) -> None:
    """Close descriptors, whatever their state."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
