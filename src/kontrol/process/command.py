"""What a guard is asked to run, what came of it, and in which words."""

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

MATCH_LIMIT = 0.1
"""Seconds of processor time in which an argument must be found to match its pattern."""

Reason = Literal[
    "exited",
    "signalled",
    "timeout",
    "stopped",
    "fenced",
    "guard died",
    "not started",
    "refused",
    "too much output",
]


@dataclass(frozen=True, slots=True)
class Command:
    """A command, its input and its bounds.

    `argv[0]` is looked up in the PATH of `env`, which is the whole environment. `cwd` None is the
    daemon's folder. `timeout` and `grace` (between SIGTERM and SIGKILL) are seconds; `stdout_limit`
    and `stderr_tail` are bytes: over the first the command is ended, of stderr that much of the end
    is kept. `scratch` is a folder that the guard removes if the daemon dies before it can. `checks`
    are regular expressions, each with a text that must match it as a whole; else nothing is
    executed, and the outcome is "refused". They are compared in the command's own process, within
    `MATCH_LIMIT` each: a pattern that backtracks for ever holds up nobody.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | None = None
    stdin: bytes = b""
    timeout: float | None = None
    stdout_limit: int = 512 * 1024
    stderr_tail: int = 4096
    grace: float = 5.0
    scratch: str | None = None
    checks: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.argv or not self.argv[0]:
            raise ValueError(f"argv {self.argv!r} names no program: expected one and arguments")

    def spec(self) -> bytes:
        """Return what the guard needs for its start, as `kontrol.process.spawn` reads it."""
        spec: dict[str, object] = {"argv": self.argv, "env": dict(self.env), "cwd": self.cwd}
        if self.checks:
            spec |= {"checks": self.checks, "match_limit": MATCH_LIMIT}
        return json.dumps(spec).encode()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended. By then nothing of it is left, unless `detail` says so.

    `status` is set if the main process exited, `signal` if a signal ended it; with "timeout",
    "stopped", "fenced" and "too much output", which say why it was ended, they tell how it then
    did. `stdout` is empty if it was streamed. `detail` is one line for people.
    """

    reason: Reason
    status: int | None
    signal: int | None
    stdout: bytes
    stderr_tail: bytes
    seconds: float
    detail: str


_MENDS = {
    errno.EACCES: "permission denied: make it executable (chmod +x) and its folders accessible, "
    "and see that the file system is not mounted noexec",
    errno.EPERM: "not permitted: see what confines this process (user, seccomp, SELinux, AppArmor)",
    errno.ENOEXEC: "is no program that this machine can run: begin a script with a line like "
    "#!/bin/sh, and take a binary for this architecture",
    errno.E2BIG: "its arguments and environment are larger than the system takes: pass less, "
    "or pass it in a file",
    errno.ETXTBSY: "is open for writing: write a new file and rename it over this one",
    errno.EINVAL: "its arguments or environment hold a NUL, a name with =, or text that is no "
    "UTF-8: remove it",
    errno.ENOTDIR: "has a part that is no folder: correct the path",
    errno.EISDIR: "is a folder: name a program",
    errno.ELOOP: "has too many symbolic links: correct them",
    errno.ENAMETOOLONG: "is too long a path: shorten it",
    errno.EAGAIN: "the limit of processes is reached: raise it (ulimit -u, the pids cgroup)",
    errno.ENOMEM: "not enough memory: raise the limit or end something",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
    errno.ENFILE: "too many open files on this machine: raise fs.file-max",
}


def explain(command: Command, error: Mapping[str, Any]) -> str:
    """Return one line on what kept the command from starting, and the mend.

    `error` holds errno, path and stage, as the guard reports them.
    """
    if error["stage"] == "check":
        return _explain_check(command, error)
    number, path = int(error["errno"]), str(error["path"]) or command.argv[0]
    if error["stage"] == "folder":
        return (
            f"its folder {path!r} could not be entered: {os.strerror(number).lower()}: correct it"
        )
    if number != errno.ENOENT:
        return f"{path!r}: {_MENDS.get(number, os.strerror(number).lower())}"
    file = Path(command.cwd or "", path)
    if "/" in path and file.exists():
        return f"{path!r} is there, but {_interpreter(file)} could not be found: install or name it"
    if "/" in path:
        return f"could not be found: {path!r}: correct the path or put the program there"
    folders = command.env.get("PATH", os.defpath)
    return f"could not be found: {path!r} in PATH {folders!r}: correct the name or the PATH"


def _explain_check(command: Command, error: Mapping[str, Any]) -> str:
    number = int(error["path"])
    pattern, text = command.checks[number - 1]
    if error["errno"] == errno.ETIME:
        return (
            f"argument {number} was not compared with {pattern!r:.200} within {MATCH_LIMIT:g} s of "
            "processor time: correct the pattern, so that there is one way to match it"
        )
    return f"argument {number} is {text!r:.80}; expected what matches {pattern!r:.200}"


def _interpreter(file: Path) -> str:
    try:
        with file.open("rb") as script:
            first = script.readline(256)
    except OSError:
        first = b""
    if not first.startswith(b"#!"):
        return "the loader that the binary asks for (it may be for another C library)"
    words = first[2:].split()
    name = words[0].decode("utf-8", "replace") if words else ""
    if first.endswith(b"\r\n"):
        return f"its interpreter {name + chr(13)!r} (lines end with CR LF: convert them to LF)"
    return f"its interpreter {name!r}"
