"""A command that is run again and again, and prints what is to be reported: the probe of a file.

It is a script like any other: a session of its own, its standard error in the log, and all of its
processes end with it. What it prints is a JSON object of bounded size. One runs at a time; the next
begins `every` seconds after the one before began, or as soon as that has ended.

What a probe cannot see is not reported: if it fails, times out or prints anything else, its facts
are dropped, and come back with the next one that succeeds. Facts of a server that no longer answers
would tell others to rely on it.

Invariant: facts are those that the last probe which ended has printed, and none if it failed.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

from automaton.manifest import Probe
from automaton.script import Environment, Output, Pipe, Running, Script, first_exit
from kontrol_common.strictjson import deeper, loads

PAYLOAD_LIMIT = 32 * 1024
"""Bytes that a probe may print for the payload: Kontrol's keepalives carry 64 KiB with all else."""

LIVE_LIMIT = 4096
"""Bytes that a probe may print for the live file: as many as Kontrol's keepalives carry."""

DEPTH = 30
"""Arrays and objects within each other in what a probe prints."""

PROBE_GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL for a probe that runs into its timeout."""

RESERVED = ("state", "since")

_log = logging.getLogger("automaton")

Facts = Mapping[str, object]


class ProbeError(Exception):
    """A probe that failed: its `kind`, which the log tells once, and the text for people."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Prober:
    """Runs the probe of the file `name`, `payload` or `live`.

    `told` is called with the facts after each one that ended, and with none when `run` ends.
    """

    def __init__(
        self,
        name: str,
        probe: Probe,
        *,
        environment: Environment,
        running: Running,
        names: Callable[[], str],
        told: Callable[[Facts], None],
    ) -> None:
        """`names` returns a name that no script had; `running` are the scripts of the machine."""
        self._label = f"probe of {name}"
        self._probe = probe
        self._limit = PAYLOAD_LIMIT if name == "payload" else LIVE_LIMIT
        self._reserved = RESERVED if name == "payload" else ()
        self._environment = environment
        self._running = running
        self._names = names
        self._told = told
        self._kind = ""  # of the last failure, empty after a success

    async def run(self) -> None:
        """Probe until cancelled; then its processes are gone."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                began = loop.time()
                try:
                    facts = parse(await self._once(), self._limit, self._reserved)
                except ProbeError as error:
                    if error.kind != self._kind:
                        _log.warning("%s: %s; its facts are left out", self._label, error)
                    self._kind = error.kind
                    facts = {}
                else:
                    if self._kind:
                        _log.info("%s: works again", self._label)
                    self._kind = ""
                self._told(facts)
                await asyncio.sleep(max(0.0, began + self._probe.every - loop.time()))
        finally:
            self._told({})

    async def _once(self) -> bytes:
        """Run it once; return what it printed. Raises `ProbeError`."""
        try:
            output, answer = Output(self._label), None
            try:
                answer = Answer(self._limit)
                environment = self._environment.outside()
                script = Script(
                    self._names(),
                    self._probe.argv,
                    environment,
                    output,
                    stdout=answer.descriptor,
                    running=self._running,
                )
            except OSError:
                output.close()
                if answer is not None:
                    answer.close()
                raise
            finally:
                output.detach()
                if answer is not None:
                    answer.detach()
        except OSError as error:
            reason = error.strerror or str(error)
            raise ProbeError(f"start {reason}", f"could not be started: {reason}") from None
        try:
            return await self._await(script, output, answer)
        finally:
            output.close()
            answer.close()

    async def _await(self, script: Script, output: Output, answer: "Answer") -> bytes:
        late = cancelled = False
        try:
            try:
                async with asyncio.timeout(self._probe.timeout):
                    await first_exit([script.pid], answer.overflow)
            except TimeoutError:
                late = True
                script.terminate()
                with suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_GRACE):
                        await first_exit([script.pid], answer.overflow)
        finally:  # also if this is cancelled
            script.kill()  # what it left too
            ending = asyncio.ensure_future(script.ended())
            while not ending.done():
                try:
                    await asyncio.wait([ending])
                except asyncio.CancelledError:
                    cancelled = True
        if cancelled:
            raise asyncio.CancelledError
        status, _ = ending.result()
        if late:
            seconds = self._probe.timeout
            raise ProbeError("timeout", f"was killed after {seconds:g} s, its timeout")
        printed = answer.read_all()
        if answer.overflow.done():
            raise ProbeError("too much", f"printed over {self._limit} bytes; print less")
        if status:
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            tail = output.tail.replace("\n", "\n  . ")
            raise ProbeError(how, f"{how}\n  . {tail}" if tail else how)
        return printed


class Answer(Pipe):
    """A probe's standard output. `overflow` is done once there are over `limit` bytes of it."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self.overflow: asyncio.Future[None] = self._loop.create_future()
        self._content = bytearray()

    def read_all(self) -> bytes:
        """Return what was printed; to be called when its processes are gone."""
        while self.open and self._read():
            pass
        return bytes(self._content)

    def _take(self, data: bytes) -> None:
        self._content += data
        if len(self._content) > self._limit and not self.overflow.done():
            self.overflow.set_result(None)
            self.close()


def parse(printed: bytes, limit: int, reserved: tuple[str, ...]) -> Facts:
    """Return the facts that a probe printed. Raises `ProbeError`.

    Whatever Kontrol would refuse is refused here: else one bad value would hide the state as well.
    """
    try:
        value = loads(printed.decode("utf-8"))
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        size = len(text.encode("utf-8"))
    except (ValueError, RecursionError) as error:
        shown = repr(printed[:40].decode("utf-8", "replace"))
        raise ProbeError("JSON", f"printed {shown}, which is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ProbeError("object", f"printed {text[:40]}; expected a JSON object")
    if size > limit:
        raise ProbeError("too much", f"printed over {limit} bytes; print less")
    if deeper(value, DEPTH):
        raise ProbeError("depth", f"printed JSON that is nested deeper than {DEPTH} levels")
    for name in reserved:
        if name in value:
            raise ProbeError(f"reserved {name}", f"printed {name!r}, which automaton sets itself")
    return value
