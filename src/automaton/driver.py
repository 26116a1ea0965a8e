"""Drives the machine: carries out its effects (processes, timers, answers) and feeds it events.

Everything runs on one event loop, in one thread. An event is handled, with all its effects, before
the next one, so that the state of the machine and of its processes cannot differ. What waits (for
the end of a script, or the answer of a `WAIT`) is a task in the driver's group or a future that the
caller awaits.

Invariant: `run` returns after the machine's `Exit`. Then no process that a script started is left,
not even if `run` raises.
"""

import asyncio
import itertools
import json
import logging
import os
import signal
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime
from typing import Any

from automaton.events import (
    Abandon,
    Begin,
    Effect,
    Ended,
    Entered,
    Event,
    Exit,
    Fired,
    Kill,
    Left,
    Reply,
    Shutdown,
    Start,
    Started,
    Terminate,
    Timer,
    Transit,
    Unstartable,
)
from automaton.machine import OK, Machine
from automaton.manifest import Manifest, Outcome, State
from automaton.payload import Payload, ReportFile, timestamp, timestamp_after
from automaton.probe import Facts, Prober
from automaton.protocol import CommandError, Immediate, Move, Set, parse
from automaton.script import Environment, Output, Running, Script, first_exit
from kontrol_common.processes import (
    SAME_SIGNAL,
    STRAY_SIGNALS,
    become_subreaper,
    children,
    handled_signals,
    kill_descendants,
    kill_orphans,
    reap_orphans,
)

HISTORY = 50
BACKGROUND_GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL for background processes, at the end."""

_log = logging.getLogger("automaton")


class Driver:
    """Runs one machine. Create it on the running loop that it is to use."""

    def __init__(self, manifest: Manifest, environment: Environment) -> None:
        self._loop = asyncio.get_running_loop()
        self._machine = Machine(manifest)
        self._environment = environment
        self._probes = manifest.probes
        self._probing: list[asyncio.Task[None]] = []
        self._running: Running = set()
        self._facts: Facts = {}  # of the payload's probe
        self._payload = Payload(manifest.payload) if manifest.payload else None
        self._live = ReportFile(manifest.live) if manifest.live else None
        self._wrong: dict[str, str] = {}  # of each file, why it could not be written last
        self._since = self._payload.since() if self._payload else None
        self._events: deque[Event] = deque()
        self._history: deque[dict[str, object]] = deque(maxlen=HISTORY)
        self._waiting: dict[int, asyncio.Future[str]] = {}
        self._tickets = itertools.count(1)
        self._names = itertools.count(1)
        self._script: Script | None = None
        self._outputs: set[Output] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._signalled: float | None = None
        self._handled: tuple[signal.Signals, ...] = ()
        self._hurry: asyncio.Future[None] = self._loop.create_future()
        self._over: asyncio.Future[bool] = self._loop.create_future()
        self._tasks = asyncio.TaskGroup()

    # Called from outside.

    async def run(self, serve: Callable[[], AbstractAsyncContextManager[None]]) -> bool:
        """Run the machine to its end. `serve` is entered once the machine has entered a state.

        Returns False if the initial state could not be entered.
        """
        become_subreaper()
        try:
            async with self._tasks:
                self._listen()
                self._handle(Begin())
                self._begin_probes()
                async with serve():
                    failed = await self._over
                await self._end_probes()
                await self._end_background()
        finally:
            self._close()
            for pid in await kill_orphans(lambda: ()):
                _log.error("process %d could not be killed", pid)
        return not failed

    async def obey(self, raw: bytes) -> str:
        """Run one command, as received; return the answer, one line without its end."""
        _log.debug("command %.100r", raw)
        try:
            match parse(raw):
                case Immediate("STATE"):
                    return self._machine.tag or "KO no state could be entered"
                case Immediate("STATUS"):
                    return self._status()
                case Immediate():
                    _log.info("DIE: shutting down")
                    self._handle(Shutdown())
                    return OK
                case Set() as command:
                    self._environment.set(command)
                    return OK
                case Move(verb, tag, value):
                    return await self._transit(Transit(next(self._tickets), verb, tag, value))
        except CommandError as error:
            return f"KO {error}"

    async def _transit(self, transit: Transit) -> str:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[transit.ticket] = answer
        self._handle(transit)
        text = await answer
        if text != OK:
            _log.info("%s %s: %s", transit.verb, transit.tag, text)
        return text

    def _status(self) -> str:
        status = {
            "state": self._machine.tag,
            "since": self._since if self._history else None,
            "pid": self._script.pid if self._script else None,
            "input": self._machine.input,
            "queue": [{"command": move.verb, "state": move.tag} for move in self._machine.queue],
            "history": list(self._history),
        }
        return json.dumps(status)

    # Events in, effects out.

    def _handle(self, event: Event) -> None:
        """Have the machine handle an event, and those that its effects cause immediately."""
        self._events.append(event)
        if len(self._events) > 1:
            return  # caused by the event that is being handled: its turn comes below
        while self._events:
            for effect in self._machine.handle(self._events[0]):
                self._do(effect)
            self._events.popleft()

    def _do(self, effect: Effect) -> None:
        match effect:
            case Reply(ticket, text):
                waiting = self._waiting.pop(ticket)
                if not waiting.done():  # it is when the client has gone
                    waiting.set_result(text)
            case Start():
                self._start(effect)
            case Entered(tag, cause):
                self._entered(tag, cause)
            case Left(_, outcome):
                self._history[-1]["outcome"] = outcome
            case Terminate() if self._script:
                self._script.terminate()
            case Kill() if self._script:
                self._script.kill()
            case Timer(seconds):
                self._set_timer(seconds)
            case Exit(failed) if not self._over.done():
                self._over.set_result(failed)

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = self._loop.call_later(seconds, self._handle, Fired())

    def _start(self, start: Start) -> None:
        state = start.state
        environment = self._environment.of(state, start.input)
        try:
            output = Output(state.tag)
        except OSError as error:
            self._unstartable(state.tag, error)
            return
        try:
            name = str(next(self._names))
            script = Script(name, state.argv, environment, output, running=self._running)
        except OSError as error:
            output.close()
            self._unstartable(state.tag, error)
            return
        finally:
            output.detach()
        output.label = f"{state.tag}[{script.pid}]"
        self._outputs = {held for held in self._outputs if held.open} | {output}
        self._script = script
        self._tasks.create_task(self._watch(state, script))
        self._handle(Started())

    def _unstartable(self, tag: str, error: OSError) -> None:
        reason = error.strerror or str(error)
        _log.error("%s: its script could not be started: %s", tag, reason)
        self._handle(Unstartable(reason))

    async def _watch(self, state: State, script: Script) -> None:
        status, seconds = await script.ended()
        self._script = None
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        if status and not script.interrupted:
            tail = script.output.tail.replace("\n", "\n  . ")
            level = logging.INFO if state.follows(Outcome.FAILURE) else logging.WARNING
            _log.log(level, "%s: %s after %.1f s\n  . %s", script.output.label, how, seconds, tail)
        else:
            _log.debug("%s: %s after %.1f s", script.output.label, how, seconds)
        self._handle(Ended(status == 0, seconds))

    def _entered(self, tag: str, cause: str) -> None:
        before = self._history[-1]["state"] if self._history else None
        now = datetime.now(UTC)
        entered = timestamp(now)
        if self._since is None or tag != before:
            self._since = entered = timestamp_after(self._since, now)
        self._history.append({"state": tag, "since": entered, "cause": cause, "outcome": None})
        self._write_payload()
        _log.info("%s -> %s (%s)", before or "(start)", tag, cause)

    # What is reported.

    def _write_payload(self) -> None:
        payload, tag, since = self._payload, self._machine.tag, self._since
        if self._history:
            tag = str(self._history[-1]["state"])  # the machine enters it with this effect
        if payload is not None and tag is not None and since is not None:
            facts = self._facts
            self._put("payload", lambda: payload.write(tag, since, facts))

    def _write_live(self, facts: Facts) -> None:
        live = self._live
        if live is not None:
            self._put("live", lambda: live.put(facts))

    def _put(self, name: str, write: Callable[[], None]) -> None:
        """Write a file; log a problem once, not with every probe."""
        wrong = ""
        try:
            write()
        except OSError as error:
            wrong = error.strerror or str(error)
            if wrong != self._wrong.get(name):
                _log.warning("%s: %s; the file is not changed", name, error)
        self._wrong[name] = wrong

    def _begin_probes(self) -> None:
        self._write_live({})  # what an earlier process left is not true any more
        for name, probe in self._probes.items():
            prober = Prober(
                name,
                probe,
                environment=self._environment,
                running=self._running,
                names=lambda: str(next(self._names)),
                told=self._payload_facts if name == "payload" else self._write_live,
            )
            self._probing.append(self._tasks.create_task(prober.run()))

    def _payload_facts(self, facts: Facts) -> None:
        self._facts = facts
        self._write_payload()

    async def _end_probes(self) -> None:
        """End the probes, and what they run."""
        for probing in self._probing:
            probing.cancel()
        if self._probing:
            await asyncio.wait(self._probing)

    # Signals and other events of this process.

    def _listen(self) -> None:
        self._handled = handled_signals()
        for sig in self._handled:
            self._loop.add_signal_handler(sig, self._signal, sig)
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)
        self._loop.set_exception_handler(self._fail)

    def _signal(self, sig: signal.Signals) -> None:
        if sig in STRAY_SIGNALS:
            _log.info("%s: ignored", sig.name)
            return
        now = self._loop.time()
        if self._signalled is None:
            self._signalled = now
            _log.info("%s: shutting down", sig.name)
            self._handle(Shutdown())
        elif (
            sig != signal.SIGHUP  # it comes with others as a session ends
            and now - self._signalled >= SAME_SIGNAL
            and not self._hurry.done()
        ):
            _log.warning("%s again: killing all", sig.name)
            self._hurry.set_result(None)
            self._handle(Abandon())

    def _reap(self) -> None:
        reap_orphans(self._running)

    def _fail(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """End the run on an error in a callback; only log an error of the system."""
        error = context.get("exception")
        if isinstance(error, Exception) and not isinstance(error, OSError):
            if not self._over.done():
                self._over.set_exception(error)
        else:
            _log.warning("%s: %s", context["message"], error)

    async def _end_background(self) -> None:
        """Send SIGTERM to processes that scripts left in the background, and wait for them."""
        me = os.getpid()
        if not self._hurry.done() and kill_descendants(me, signal.SIGTERM):
            with suppress(TimeoutError):
                async with asyncio.timeout(BACKGROUND_GRACE):
                    while not self._hurry.done() and (left := children(me)):
                        await first_exit(left, self._hurry)
                        self._reap()

    def _close(self) -> None:
        self._set_timer(None)
        for sig in (*self._handled, signal.SIGCHLD):
            self._loop.remove_signal_handler(sig)
        for output in self._outputs:
            output.flush()
            output.close()
