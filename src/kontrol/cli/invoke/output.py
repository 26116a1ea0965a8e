"""What `kontrol invoke` prints: lines with the pod's name in front, or JSON; progress; a summary.

Writing is done in a thread. If the reader (a pager) stops reading, that must block the commands
whose output is not read, through their pipes, and not this process's event loop: without its
heartbeats, the pods would end every command.

On a terminal, what pods write is escaped (`kontrol_common.text`): a pod cannot steer the terminal
of the operator. Elsewhere the bytes are passed on as they came.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import Sequence
from typing import BinaryIO

from kontrol.cli.invoke.fanout import Result, Target
from kontrol_common.text import escaped

LONGEST = 64 * 1024  # bytes of a line that are kept until its end comes

_CLEAR = b"\r\x1b[K"
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)


class Lines:
    """Adds `prefix` to each line of a stream that comes in pieces. Pure."""

    def __init__(self, prefix: bytes, *, escape: bool = False) -> None:
        self._prefix = prefix
        self._escape = escape
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Return the lines that are complete now; one that grows too long is broken."""
        data = self._rest + data
        end = data.rfind(b"\n") + 1
        if len(data) - end > LONGEST:
            end, data = len(data) + 1, data + b"\n"
        self._rest = data[end:]
        return self._marked(data[:end])

    def end(self) -> bytes:
        """Return the last line if it is not complete, with a line end."""
        rest, self._rest = self._rest, b""
        return self._marked(rest + b"\n") if rest else b""

    def _marked(self, lines: bytes) -> bytes:
        if not lines:
            return b""
        if self._escape:
            lines = escaped_lines(lines)
        return self._prefix + lines[:-1].replace(b"\n", b"\n" + self._prefix) + b"\n"


def escaped_lines(lines: bytes) -> bytes:
    """Return text for a terminal: UTF-8, `escaped` but for tabs and line ends."""
    text = lines.replace(b"\r\n", b"\n").decode("utf-8", "backslashreplace")
    return escaped(text, keep="\t\n").encode("utf-8")


class Printer:
    """Writes to standard output and error, whole pieces in order, below them a line of progress.

    `tty_out` and `tty_err` say which are terminals. Raises what writing raises.
    """

    def __init__(self, out: BinaryIO, err: BinaryIO, *, tty_out: bool, tty_err: bool) -> None:
        self._out = out
        self._err = err
        self.tty_out = tty_out
        self.tty_err = tty_err
        self._progress = b""
        self._turn = asyncio.Lock()

    async def write(self, data: bytes, *, err: bool = False) -> None:
        """Write to one of them; the line of progress is removed first, and drawn again."""
        async with self._turn:
            await asyncio.to_thread(self._write, data, err=err)

    async def progress(self, text: str) -> None:
        """Show the progress, on a terminal only; an empty text removes the line."""
        if self.tty_err:
            async with self._turn:
                self._progress = text.encode("utf-8")
                await asyncio.to_thread(self._write, b"", err=True)

    def _write(self, data: bytes, *, err: bool) -> None:
        if self.tty_err:
            self._err.write(_CLEAR)
            self._err.flush()
        stream = self._err if err else self._out
        stream.write(data)
        stream.flush()
        if self.tty_err:
            self._err.write(self._progress)
            self._err.flush()


class TextReport:
    """For people: each line with its pod's name; at the end, which pods failed, and why."""

    def __init__(self, printer: Printer, targets: Sequence[Target], *, colour: bool) -> None:
        self._printer = printer
        self._total = len(targets)
        self._width = max((len(target.name) for target in targets), default=0)
        self._colours = {
            target: _COLOURS[number % len(_COLOURS)] if colour else 0
            for number, target in enumerate(targets)
        }
        self._lines: dict[tuple[Target, str], Lines] = {}
        self._ended = 0
        self._failed = 0

    async def begin(self) -> None:
        """Show the progress for the first time."""
        await self._printer.progress(f"kontrol: 0 of {self._total} pods done")

    async def output(self, target: Target, stream: str, data: str | bytes) -> None:
        """Print the lines that are complete now."""
        lines = self._lines.get((target, stream))
        if lines is None:
            lines = self._lines[target, stream] = self._make(target, err=stream == "stderr")
        raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
        if whole := lines.feed(raw):
            await self._printer.write(whole, err=stream == "stderr")

    async def ended(self, result: Result) -> None:
        """Print the rest of a pod's output, and count the pod."""
        for stream in ("stdout", "stderr"):
            lines = self._lines.pop((result.target, stream), None)
            if lines is not None and (rest := lines.end()):
                await self._printer.write(rest, err=stream == "stderr")
        self._ended += 1
        self._failed += not result.ok
        failed = f", {self._failed} failed" if self._failed else ""
        await self._printer.progress(f"kontrol: {self._ended} of {self._total} pods done{failed}")

    async def finish(self, results: Sequence[Result]) -> None:
        """Print a table of the pods that failed."""
        await self._printer.progress("")
        failed = [result for result in results if not result.ok]
        if failed:
            text = summary(failed, len(results))
            await self._printer.write(text.encode("utf-8", "backslashreplace"), err=True)

    def _make(self, target: Target, *, err: bool) -> Lines:
        tty = self._printer.tty_err if err else self._printer.tty_out
        name = escaped(target.name).encode("utf-8")
        if tty:
            name = name.ljust(self._width)
        if tty and (colour := self._colours[target]):
            return Lines(b"\x1b[%dm%s |\x1b[0m " % (colour, name), escape=True)
        return Lines(name + b" | ", escape=tty)


class JsonReport:
    """For programs: one object per line, for each piece of output and each end, then a summary."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer

    async def begin(self) -> None:
        """Print nothing."""

    async def output(self, target: Target, stream: str, data: str | bytes) -> None:
        """Print a piece; what is not UTF-8 in it becomes U+FFFD."""
        text = data if isinstance(data, str) else data.decode("utf-8", "replace")
        await self._print({"pod": target.name, "key": target.key, stream: text})

    async def ended(self, result: Result) -> None:
        """Print the outcome of a pod."""
        final = result.final or {}
        await self._print(
            {
                "pod": result.target.name,
                "key": result.target.key,
                "ok": result.ok,
                "kind": result.kind,
                "why": result.why,
                **{name: final[name] for name in ("exit", "signal", "seconds") if name in final},
            }
        )

    async def finish(self, results: Sequence[Result]) -> None:
        """Print the number of pods, and the names of those that failed."""
        failed = [result.target.name for result in results if not result.ok]
        await self._print({"pods": len(results), "failed": failed})

    async def _print(self, value: object) -> None:
        await self._printer.write(json.dumps(value).encode("ascii") + b"\n")


def summary(failed: Sequence[Result], total: int) -> str:
    """Return a table of the pods that failed, and why, below a line that counts them."""
    rows = [("POD", "WHY"), *((result.target.name, result.why) for result in failed)]
    width = max(len(name) for name, _ in rows)
    head = f"kontrol: {len(failed)} of {total} pod{'s' if total != 1 else ''} failed:"
    lines = [head, *(f"  {name:<{width}}  {why}" for name, why in rows)]
    return "".join(f"{escaped(line)}\n" for line in lines)


def is_terminal(stream: BinaryIO) -> bool:
    """Return whether a stream is a terminal."""
    with contextlib.suppress(OSError, ValueError):
        return os.isatty(stream.fileno())
    return False
