"""The callback: the user's command, run by a guard; its input, and what its output means.

Input comes in three ways, so that anything can be a callback: environment variables for shell
scripts, files for what outgrows those, one JSON document on stdin for programs. Linux accepts
128 KiB in one environment string, a few thousand pods; a larger value is left out of the
environment, never cut.

Output is the state: strict JSON (RFC 8259) of bounded size, or nothing, so that what a failing tool
prints is never mistaken for it. The state is kept as printed, byte for byte, and read by programs
in any language. So what these read differently (NaN, a number that becomes infinite, a member that
is there twice) is refused. In files, a callback may leave more: see `runfiles`.

Building the input and judging the outcome are functions of their arguments alone; `Callback` adds
a folder for the files and the guard.
"""

import asyncio
import json
import logging
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kontrol.ensemble.canonical import NotJSON, parse
from kontrol.filewatch import Watch
from kontrol.master.fingerprint import Fingerprint
from kontrol.master.runfiles import (
    AGAIN_FILE,
    NOTE_FILE,
    RunFileError,
    output_files,
    read_again,
    read_note,
)
from kontrol.master.runsocket import RUN_SOCKET, Publish, serving
from kontrol.process.command import Command, Outcome
from kontrol.process.guard import Guard, GuardError

log = logging.getLogger(__name__)

STRING_LIMIT = 128 * 1024  # NAME=value and its NUL: MAX_ARG_STRLEN, include/uapi/linux/binfmts.h

_LOOK = 1.0  # seconds between looks at files whose changes leave no events
_SETTLE = 0.5  # seconds for which a new callback stays as it is before it counts
_SETTLE_MAX = 10.0  # seconds after which it counts even if it still changes

_VARIABLES = ("HASH", "MD5", "PODS", "STATE", "CHANGES", "SPEC", "TIER", "TERM_ID", "RUN")
_FILES = {name: f"{name}_FILE" for name in ("PODS", "STATE", "CHANGES", "SPEC")}
_OWN = {*_VARIABLES, *_FILES.values(), AGAIN_FILE, NOTE_FILE, RUN_SOCKET}


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The input of one run.

    `term` and `run` are the fencing numbers, `attempt` counts the runs for one change, `digest` is
    the ensemble's; `pods` is a JSON array, `changes` a JSON object, `state` any JSON, None without
    one. `spec` is the desired state, a JSON object; None if its record is damaged. By `publish` it
    may publish documents until it has ended; None if it may not.
    """

    run: int
    term: int
    attempt: int
    digest: str
    pods: bytes
    changes: bytes
    state: bytes | None
    spec: bytes | None = b"{}"
    publish: Publish | None = field(default=None, compare=False)

    @property
    def documents(self) -> dict[str, bytes | None]:
        """The JSON texts by the names of their variables; None for what there is not."""
        return {
            "PODS": self.pods,
            "STATE": self.state,
            "CHANGES": self.changes,
            "SPEC": self.spec,
        }


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """The result of a run.

    `state` is the new state, JSON; None keeps the old one. `why` is one line for people. `status`
    or `signal` is how the process ended, if it was started. `fenced`: the deadline passed. `again`
    is in how many seconds to run again, and `note` a line for people, None without.
    """

    ok: bool
    state: bytes | None
    why: str
    status: int | None
    signal: int | None
    stderr_tail: str
    seconds: float
    fenced: bool
    again: float | None = None
    note: str | None = None


class Callback:
    """Runs the callback. `run` does not yield to the loop before the guard has the command."""

    def __init__(
        self,
        command: str,
        *,
        argv: tuple[str, ...],
        shell: bool,
        timeout: float | None,
        environ: Mapping[str, str],
        secrets: Collection[str],
        guard: Guard,
        on_stderr: Callable[[str], None],
        clock: Callable[[], float],
        tier: str = "",
    ) -> None:
        """`argv` is what to execute for `command`: its words, or if `shell` a shell that reads it.

        `timeout` is in seconds; `secrets` names variables of `environ` to keep from the callback.
        `tier` is "namespace/app": by it and the term, agents fence the commands that the callback
        has them run. `on_stderr` is called with each line of standard error. `clock` is the boot
        clock, in seconds.
        """
        self._argv = argv
        self._timeout = timeout
        own = _OWN.union(secrets)
        self._environ = {name: value for name, value in environ.items() if name not in own}
        if tier:
            self._environ["TIER"] = tier
        self._guard = guard
        self._on_stderr = on_stderr
        path = self._environ.get("PATH", os.defpath)
        self._fingerprint = Fingerprint(command, path, shell=shell, clock=clock)
        self._last: str | None = None  # the fingerprint that was returned last

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the command line and of each file that a word of it names."""
        self._last = self._fingerprint.read()
        return self._last

    async def changed(self) -> None:
        """Return when the fingerprint is another than `fingerprint` returned last.

        A change counts once it has settled, so that a half-written script is not run. No change is
        missed between two calls: the fingerprints are compared, not only events awaited.
        """
        loop = asyncio.get_running_loop()
        last = self._last or self.fingerprint()
        latest = None
        with Watch("the callback's files", interval=_LOOK) as watch:
            while True:
                watch.arm(self._fingerprint.paths())  # before reading, so that no change is missed
                now = self._fingerprint.read()
                if now == self._last:
                    latest = None
                    await watch.changed()
                elif now == last or (latest is not None and loop.time() >= latest):
                    return
                elif latest is None:
                    latest = loop.time() + _SETTLE_MAX
                last = now
                await asyncio.sleep(_SETTLE)

    async def run(self, request: RunRequest, deadline: float) -> RunOutcome:
        """Run it once, until `deadline` (seconds of the boot clock) at the latest."""
        try:
            folder = Path(tempfile.mkdtemp(prefix="kontrol-"))  # mode 0700
        except OSError as error:
            return _not_started(f"no temporary folder: {error}: set TMPDIR to one that is writable")
        self._fingerprint.run_begins()
        try:
            output = output_files(folder)
            async with serving(folder, request.publish) as socket:
                environ = self._environ | build_environment(
                    request,
                    {**write_files(request, folder), **output, **socket},
                    room=argument_room() // 2 - size_of(self._argv, self._environ),
                )
                command = Command(
                    self._argv,
                    environ,
                    stdin=build_document(request),
                    timeout=self._timeout,
                    stdout_limit=STATE_LIMIT,
                    scratch=str(folder),
                )
                outcome = judge(
                    await self._guard.run(command, deadline=deadline, on_stderr=self._on_stderr)
                )
            return with_files(outcome, output) if outcome.ok else outcome
        except (OSError, GuardError) as error:
            return _not_started(str(error))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            for word in self._fingerprint.run_ended():
                log.warning(
                    "%s, a word of KONTROL_CALLBACK, changed during two runs: while runs write it, "
                    "its changes do not make a new callback",
                    word,
                )

    def extend(self, deadline: float) -> None:
        """Move the deadline of the run under way (seconds of the boot clock)."""
        self._guard.extend(deadline)

    async def stop(self) -> None:
        """End the run under way: SIGTERM, 5 s, SIGKILL. Returns when it is gone."""
        await self._guard.stop()


def write_files(request: RunRequest, folder: Path) -> dict[str, str]:
    """Write the files, and return the variables that name them.

    Each ends with a newline, as the document on stdin does: `while read` drops a line without.
    """
    variables = {}
    for name, content in request.documents.items():
        if content is not None:
            path = folder / f"{name.lower()}.json"
            path.write_bytes(content + b"\n")
            variables[_FILES[name]] = str(path)
    return variables


def build_environment(
    request: RunRequest, files: Mapping[str, str], *, room: int
) -> dict[str, str]:
    """Return the variables of one run.

    Those for pods, state, changes and the desired state are left out if they are larger than a
    string may be; then the largest first, until all fit into `room` bytes (as `size_of` counts).
    """
    fixed = {
        "HASH": request.digest,
        "MD5": request.digest,  # the original's name
        "TERM_ID": str(request.term),
        "RUN": str(request.run),
        **files,
    }
    values = {name: text for name, text in request.documents.items() if text is not None}
    large = {name: value.decode("utf-8", "surrogateescape") for name, value in values.items()}
    for name in sorted(large, key=lambda name: len(values[name]), reverse=True):
        too_long = len(name) + len(values[name]) + 2 > STRING_LIMIT
        if too_long or size_of((), fixed | large) > room:
            del large[name]
    return fixed | large


def build_document(request: RunRequest) -> bytes:
    """Return the JSON document for stdin; it has no `state` and no `spec` if there is none."""
    members = {
        "hash": json.dumps(request.digest).encode(),
        "term_id": b"%d" % request.term,
        "run": b"%d" % request.run,
        "changes": request.changes,
        "spec": request.spec,
        "state": request.state,
        "pods": request.pods,
    }
    parts = [b'"%s":%s' % (name.encode(), v) for name, v in members.items() if v is not None]
    return b"{" + b",".join(parts) + b"}\n"


def size_of(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Return what the arguments and the environment take, in bytes, as execve(2) counts."""
    strings = [*argv, *(f"{name}={value}" for name, value in environ.items())]
    return sum(len(text.encode("utf-8", "surrogatepass")) + 1 + 8 for text in strings)


def argument_room() -> int:
    """Return how many bytes of arguments and environment a new program may have.

    Callers use half of it: a callback starts commands itself, with arguments of their own.
    """
    if sys.platform != "linux":
        return os.sysconf("SC_ARG_MAX")
    # execve(2): a quarter of the stack's limit, at most 6 MiB, at least 128 KiB. sysconf(3) of
    # musl always returns the last.
    stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
    most = 6 * 1024 * 1024
    return most if stack == resource.RLIM_INFINITY else max(STRING_LIMIT, min(most, stack // 4))


def judge(outcome: Outcome) -> RunOutcome:
    """Judge a run: it succeeded if it exited with status 0 and printed JSON or nothing."""
    ok, state, why = False, None, outcome.detail
    if outcome.reason == "exited" and outcome.status == 0:
        try:
            ok, state = True, parse_state(outcome.stdout)
        except StateError as error:
            ok, why = False, str(error)
    elif outcome.reason == "too much output":
        why += ", which is the state: keep it small, and write anything else to standard error"
    return RunOutcome(
        ok=ok,
        state=state,
        why=why,
        status=outcome.status,
        signal=outcome.signal,
        stderr_tail=outcome.stderr_tail.decode("utf-8", "replace"),
        seconds=outcome.seconds,
        fenced=outcome.reason == "fenced",
    )


def with_files(outcome: RunOutcome, files: Mapping[str, str]) -> RunOutcome:
    """Return a successful outcome with what the callback left in files, or why it failed after all.

    `files` are those of `output_files`.
    """
    try:
        again = read_again(files)
    except RunFileError as error:
        return replace(outcome, ok=False, state=None, why=str(error))
    note, wrong = read_note(files)
    if wrong:
        log.warning("%s", wrong)
    return replace(outcome, again=again, note=note)


def _not_started(why: str) -> RunOutcome:
    return RunOutcome(
        ok=False,
        state=None,
        why=why,
        status=None,
        signal=None,
        stderr_tail="",
        seconds=0.0,
        fenced=False,
    )


STATE_LIMIT = 512 * 1024  # bytes of JSON
STATE_DEPTH = 100  # arrays and objects within each other: parsers of any language accept that


class StateError(ValueError):
    """What the callback printed is not a state. The text says what it printed."""


def parse_state(stdout: bytes) -> bytes | None:
    """Return the JSON that was printed, without white space around it; None if nothing was.

    Raises StateError if it is not strict JSON (RFC 8259) within `STATE_LIMIT` and `STATE_DEPTH`.
    """
    state = stdout.strip(b" \t\r\n")
    if not state:
        return None
    fix = "standard output is the state: write anything else to standard error"
    if len(state) > STATE_LIMIT:
        raise StateError(f"printed {len(state)} bytes, over {STATE_LIMIT}: {fix}")
    try:
        parse(stdout, depth=STATE_DEPTH)
    except NotJSON as error:
        raise StateError(f"printed invalid JSON: {error}: {fix}") from None
    return state
