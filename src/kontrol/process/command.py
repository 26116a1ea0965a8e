"""A command that a guard runs, its outcome and how that is explained, and its output.

A pipe that is not read stops its writer, so stdout and stderr are drained from the start, at any
size. What is kept is bounded: all of stdout up to a limit, the tail of stderr. What is passed on
line by line is bounded in length and rate, so that a log does not fill.
"""

import asyncio
import errno
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

MATCH_LIMIT = 0.1
"""Seconds of processor time in which an argument must have been compared with its pattern."""

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
    and `stderr_tail` are bytes: a command that writes more to stdout is ended, and of stderr that
    much of the end is kept. `scratch` is a folder that the guard removes if the daemon dies before
    it can. `checks` are regular expressions, each with a text that must match it as a whole;
    otherwise nothing is executed, and the outcome is "refused". They are compared in the command's
    own process, within `MATCH_LIMIT` each, so that a pattern which backtracks without end blocks
    only itself.
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
    """How a command ended. By then no process of it is left, unless `detail` says so.

    `status` is set if the main process exited, `signal` if a signal ended it. This holds also for
    the reasons "timeout", "stopped", "fenced" and "too much output", which say why it was ended.
    `stdout` is empty if it was streamed. `seconds` is how long it took. `detail` is one line for
    people.
    """

    reason: Reason
    status: int | None
    signal: int | None
    stdout: bytes
    stderr_tail: bytes
    seconds: float
    detail: str


_FIXES = {
    errno.EACCES: "permission denied: make it executable (chmod +x) and its folders accessible, "
    "and check that the file system is not mounted noexec",
    errno.EPERM: "not permitted: check what confines this process (user, seccomp, SELinux, "
    "AppArmor)",
    errno.ENOEXEC: "is not a program that this machine can run: begin a script with a line like "
    "#!/bin/sh, and use a binary for this architecture",
    errno.E2BIG: "its arguments and environment are larger than the system accepts: pass less, "
    "or pass it in a file",
    errno.ETXTBSY: "is open for writing: write a new file and rename it over this one",
    errno.EINVAL: "its arguments or environment hold a NUL, a name with =, or text that is not "
    "UTF-8: remove it",
    errno.ENOTDIR: "has a part that is not a folder: correct the path",
    errno.EISDIR: "is a folder: name a program",
    errno.ELOOP: "has too many symbolic links: correct them",
    errno.ENAMETOOLONG: "is too long a path: shorten it",
    errno.EAGAIN: "the limit of processes is reached: raise it (ulimit -u, the pids cgroup)",
    errno.ENOMEM: "not enough memory: raise the limit or end something",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
    errno.ENFILE: "too many open files on this machine: raise fs.file-max",
}


def explain(command: Command, error: Mapping[str, Any]) -> str:
    """Return one line: why the command could not be started, and the fix.

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
        return f"{path!r}: {_FIXES.get(number, os.strerror(number).lower())}"
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


CHUNK = 256 * 1024
LINE_LIMIT = 8 * 1024  # bytes of one line that are passed on


class Drain:
    """Reads one pipe to its end and passes on each chunk; waits for `take` if it is awaitable."""

    def __init__(self, fd: int, take: Callable[[bytes], Awaitable[None] | None]) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._take = take
        self._over = False
        self._readable: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Read until the end; after `finish`, until the pipe is empty."""
        while True:
            try:
                chunk = os.read(self._fd, CHUNK)
            except BlockingIOError:
                if self._over:
                    return
                await self._wait()
                continue
            if not chunk:
                return
            handled = self._take(chunk)
            if handled is not None:
                await handled
            await asyncio.sleep(0)  # a fast writer must not block the loop

    def finish(self) -> None:
        """Note that the command is gone: read only what is in the pipe.

        A process that we do not own may have the descriptor, and never close it.
        """
        self._over = True
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        readable = self._readable = loop.create_future()
        loop.add_reader(self._fd, _resolve, readable)
        try:
            await readable
        finally:
            loop.remove_reader(self._fd)
            self._readable = None


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Tail:
    """The last `limit` bytes of what is added."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()

    def add(self, chunk: bytes) -> None:
        """Append, and drop what is over the limit."""
        self._kept += chunk[-self._limit :] if self._limit else b""
        del self._kept[: -self._limit or None]

    def __bytes__(self) -> bytes:
        return bytes(self._kept)


class Lines:
    """Cuts chunks into lines of text for a log: each cut to `LINE_LIMIT`, and not too many.

    `burst` lines may come together, `rate` per second in the long run. Lines over that are dropped,
    and a line says how many, once there is room again or at the end. Time is an argument.
    """

    def __init__(self, *, burst: int = 1000, rate: float = 100.0) -> None:
        self._burst = burst
        self._rate = rate
        self._room = float(burst)
        self._last: float | None = None
        self._partial = bytearray()  # up to LINE_LIMIT of a line whose end has not come yet
        self._cut = 0  # bytes of it that were dropped
        self._dropped = 0

    def feed(self, chunk: bytes, now: float) -> list[str]:
        """Return the lines that this chunk, received at `now` (seconds), completes."""
        if self._last is not None:
            self._room = min(self._burst, self._room + (now - self._last) * self._rate)
        self._last = now
        lines: list[str] = []
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            if self._room < 1:  # skip at the speed of `count`: there may be a million lines
                self._dropped += chunk.count(b"\n", start)
                self._clear()
                start = chunk.rfind(b"\n") + 1
                break
            self._extend(chunk[start:end])
            lines += self._notice()
            lines.append(self._complete())
            start = end + 1
        self._extend(chunk[start:])
        return lines

    def end(self) -> list[str]:
        """Return what is left: the count of dropped lines, and a last line without its end."""
        lines = self._notice()
        if self._partial:
            lines.append(self._complete())
        return lines

    def _extend(self, part: bytes) -> None:
        room = LINE_LIMIT - len(self._partial)
        self._partial += part[:room]
        self._cut += max(0, len(part) - room)

    def _notice(self) -> list[str]:
        dropped, self._dropped = self._dropped, 0
        return [f"... {dropped} lines are not shown here ..."] if dropped else []

    def _complete(self) -> str:
        text = self._partial.decode("utf-8", "replace").removesuffix("\r")
        if self._cut:
            text += f" ... {self._cut} bytes cut"
        self._room -= 1
        self._clear()
        return text

    def _clear(self) -> None:
        self._partial.clear()
        self._cut = 0
