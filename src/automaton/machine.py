"""The finite-state machine: events in, effects out. No clock, no I/O.

Theory of operation. The machine is in one *phase*; `_TABLE` says which events a phase accepts and
what they do, and an event that it does not name raises `IllegalEvent` and changes nothing.

    NEW -> STARTING -> RUNNING ----------------------------------> RESTING -> (next) STARTING
                          |  command                                  |  `on`, `retry`
                          v                                           v
                       LEEWAY -> TERMINATING -> KILLING -------->  BACKOFF        ... -> OVER
                        1 s        SIGTERM, 5 s   SIGKILL        0.1 to 30 s

Each phase has at most one timer: entering a phase sets or clears it, and `Fired` means that it ran
out. In LEEWAY a script that requested the transition itself has time to end. A transition is judged
once, when it is first in the queue and a state has been entered; it leaves the queue when its state
is entered. `Ended`, after the machine has sent a signal, means that every process of the script is
gone.

Invariants, which the tests check against a model of a few lines: every command is answered exactly
once; transitions are judged in order; nothing leaves the terminal state; it starts at most once, as
the last state, before the end, unless a second signal prevents it.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, ClassVar

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
from automaton.manifest import Manifest, Outcome, State
from automaton.validate import nearest

QUEUE = 64
LEEWAY = 1.0
GRACE = 5.0
SHORT = 1.0
BACKOFF_MIN = 0.1
BACKOFF_MAX = 30.0

OK = "OK"
INTERRUPTED = "KO interrupted"


class Phase(Enum):
    """Where the machine is in the life of a script."""

    NEW = auto()
    STARTING = auto()
    RUNNING = auto()
    LEEWAY = auto()
    TERMINATING = auto()
    KILLING = auto()
    RESTING = auto()
    BACKOFF = auto()
    OVER = auto()


class IllegalEvent(Exception):
    """An event that the phase does not accept: an error in the driver."""


@dataclass(frozen=True, slots=True)
class _Target:
    """A state to be entered. `ticket` is that of the `WAIT` that requested it."""

    tag: str
    cause: str
    input: str = ""
    ticket: int | None = None
    attempt: int = 1


class Machine:
    """One run of a manifest's machine."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.phase = Phase.NEW
        self.tag: str | None = None
        self.input = ""
        self.dying = False
        self._effects: list[Effect] = []
        self._queue: deque[Transit] = deque()
        self._accepted = False  # the first in the queue is judged, and legal
        self._target = _Target(manifest.initial, "start")
        self._waiter: int | None = None  # the WAIT whose script runs
        self._attempt = 1
        self._expired = False  # the script ran into its limit
        self._shorts = 0  # automatic steps in a row after short scripts
        self._abandoned = False
        self._failed = False
        self._verdict = OK  # what a WAIT for the script that ended last is answered
        self._last: tuple[Outcome, float] | None = (
            None  # how it ended, if by itself, and after how many seconds
        )

    @property
    def queue(self) -> tuple[Transit, ...]:
        """The transitions that have not been made yet, in order."""
        return tuple(self._queue)

    def handle(self, event: Event) -> list[Effect]:
        """Handle one event; return the effects, in order. Raises `IllegalEvent`."""
        handler = self._TABLE[self.phase].get(type(event))
        if handler is None:
            raise IllegalEvent(f"{event} in phase {self.phase.name}")
        self._effects = []
        handler(self, event)
        return self._effects

    def _begin(self, _: Begin) -> None:
        self._start(self._target)

    # Commands.

    def _transit(self, event: Transit) -> None:
        if self.dying:
            self._answer(event.ticket, "KO shutting down")
        elif len(self._queue) >= QUEUE:
            self._answer(event.ticket, f"KO {QUEUE} transitions are queued; try again later")
        else:
            self._queue.append(event)
            if self.phase is not Phase.STARTING:
                self._proceed()

    def _proceed(self) -> None:
        """Judge the first transition of the queue, and begin it if it is legal."""
        if not self._judge():
            return
        if self.phase in (Phase.RESTING, Phase.BACKOFF):
            self._start_head()
        elif self.phase is Phase.RUNNING and not self._state().force:
            self._enter_phase(Phase.LEEWAY, LEEWAY)

    def _judge(self) -> bool:
        while self._queue and not self._accepted:
            head = self._queue[0]
            reason = self._illegal(head.tag)
            if reason:
                self._queue.popleft()
                self._answer(head.ticket, f"KO {reason}")
                continue
            self._accepted = True
            if head.verb == "GOTO":
                self._answer(head.ticket, OK)
        return self._accepted

    def _illegal(self, tag: str) -> str:
        """Return why a state cannot be entered from here; empty if it can."""
        states = self.manifest.states
        if tag not in states:
            return f"no state {tag[:64]!r}: {nearest(tag[:64], states)}"
        if self.tag == self.manifest.terminal:
            return f"nothing leaves {self.tag!r}, the terminal state"
        if tag == self.manifest.terminal or tag in self._state().reach:
            return ""
        legal = ", ".join(sorted(self._state().reach | {self.manifest.terminal}))
        return f"{self.tag!r} does not lead to {tag!r}, only to {legal}"

    def _shutdown(self, _: Shutdown) -> None:
        if self.dying:
            return
        self.dying = True
        self._answer_waiter("KO shutting down")
        for pending in self._queue:
            # A GOTO that was judged legal has been answered.
            if not (self._accepted and pending is self._queue[0] and pending.verb == "GOTO"):
                self._answer(pending.ticket, "KO shutting down")
        self._queue.clear()
        self._accepted = False
        self._target = replace(
            self._target, ticket=None
        )  # a WAIT was answered above: it was in the queue
        if self.phase in (Phase.RESTING, Phase.BACKOFF):
            self._finish()
        elif self.phase is Phase.RUNNING and self.tag != self.manifest.terminal:
            self._enter_phase(Phase.LEEWAY, LEEWAY)

    def _abandon(self, _: Abandon) -> None:
        self._abandoned = True
        self._shutdown(Shutdown())
        if self.phase in (Phase.RUNNING, Phase.LEEWAY, Phase.TERMINATING):
            self._kill()

    # Scripts.

    def _start(self, target: _Target) -> None:
        self._target = target
        if self.manifest.states[target.tag].argv:
            self._enter_phase(Phase.STARTING, None)
            state = self.manifest.states[target.tag]
            self._effects.append(Start(state, target.input, target.attempt))
        else:
            self._enter()
            self._settle(Outcome.SUCCESS, 0.0, OK)

    def _enter(self) -> None:
        target = self._target
        if target.attempt == 1:
            self._effects.append(Entered(target.tag, target.cause))
        if self._accepted:  # then the target is the first of the queue
            self._queue.popleft()
            self._accepted = False
            self._shorts = 0
        self.tag, self.input = target.tag, target.input
        self._attempt = target.attempt
        if target.attempt == 1:  # during the attempts of one stay, the WAIT goes on
            self._waiter = target.ticket
        self._expired = False
        self._last = None

    def _started(self, _: Started) -> None:
        self._enter()
        self._enter_phase(Phase.RUNNING, self.manifest.limit(self._state().tag))
        if self._abandoned:
            self._kill()
        elif self.dying and self.tag != self.manifest.terminal:
            self._enter_phase(Phase.LEEWAY, LEEWAY)
        else:
            self._proceed()

    def _unstartable(self, event: Unstartable) -> None:
        ticket = self._target.ticket
        self._enter_phase(Phase.RESTING, None)
        if self._accepted:  # the command has failed, and the state stays
            self._queue.popleft()
            self._accepted = False
        if ticket is not None:
            self._answer(ticket, f"KO could not start: {event.reason}")
        if self._last is not None:  # what the state does by itself comes next, after a delay
            self._last = (self._last[0], 0.0)
        self._failed = self._failed or self.tag is None
        if self._failed and not self.dying:
            self._shutdown(Shutdown())
        else:
            self._onward()

    def _fired(self, _: Fired) -> None:
        if self.phase is Phase.BACKOFF:
            self._start(self._target)
        elif self.phase is Phase.TERMINATING:
            self._kill()
        elif self.phase is Phase.RUNNING and self.tag == self.manifest.terminal:
            self._expired = True
            self._kill()
        else:
            self._expired = self.phase is Phase.RUNNING
            self._enter_phase(Phase.TERMINATING, GRACE)
            self._effects.append(Terminate())

    def _kill(self) -> None:
        self._enter_phase(Phase.KILLING, None)
        self._effects.append(Kill())

    def _ended(self, event: Ended) -> None:
        outcome = Outcome.SUCCESS if event.success else Outcome.FAILURE
        answer = OK
        if self._expired:
            outcome, answer = Outcome.TIMEOUT, "KO timed out"
        elif self.phase in (Phase.TERMINATING, Phase.KILLING):
            outcome, answer = Outcome.FAILURE, INTERRUPTED
        self._settle(outcome, event.seconds, answer)

    def _settle(self, outcome: Outcome, seconds: float, answer: str) -> None:
        """Record the end of a script, and continue."""
        interrupted = answer == INTERRUPTED
        self._effects.append(Left(self._state().tag, "interrupted" if interrupted else outcome))
        self._enter_phase(Phase.RESTING, None)
        self._verdict = answer
        self._last = None if interrupted else (outcome, seconds)
        self._onward()

    def _onward(self) -> None:
        """Take the next step when no script runs: shut down, the queue, or the state's own."""
        if self.dying:
            self._answer_waiter(self._verdict)
            self._finish()
        elif self._judge():
            self._start_head()
        elif self._last is None or self.tag == self.manifest.terminal:
            self._answer_waiter(self._verdict)
        else:
            self._go_on(*self._last)

    def _go_on(self, outcome: Outcome, seconds: float) -> None:
        """Do what the state says for this outcome: retry, or the next state."""
        state = self._state()
        if outcome is not Outcome.SUCCESS and self._attempt <= state.retry:
            again = _Target(state.tag, "retry", self.input, attempt=self._attempt + 1)
            self._step(again, seconds)
            return
        self._answer_waiter(self._verdict)
        follows = state.follows(outcome)
        if follows is not None:
            self._step(_Target(follows, outcome), seconds)

    def _step(self, target: _Target, seconds: float) -> None:
        """Enter a state automatically, after a delay if the last script was short."""
        if seconds >= SHORT:
            self._shorts = 0
            self._start(target)
            return
        delay = min(BACKOFF_MAX, BACKOFF_MIN * 2.0 ** min(self._shorts, 20))
        self._shorts += 1
        self._target = target
        self._enter_phase(Phase.BACKOFF, delay)

    def _finish(self) -> None:
        """Continue the shutdown when no script runs."""
        if (
            self._abandoned
            or self.tag == self.manifest.terminal
            or self._target.cause == "shutdown"  # its script could not be started
        ):
            self._enter_phase(Phase.OVER, None)
            self._effects.append(Exit(self._failed))
        else:
            self._start(_Target(self.manifest.terminal, "shutdown"))

    # Helpers.

    def _state(self) -> State:
        if self.tag is None:
            raise IllegalEvent("no state has been entered yet")
        return self.manifest.states[self.tag]

    def _start_head(self) -> None:
        self._answer_waiter(self._verdict)
        head = self._queue[0]
        ticket = head.ticket if head.verb == "WAIT" else None
        self._start(_Target(head.tag, head.verb, head.input, ticket))

    def _enter_phase(self, phase: Phase, seconds: float | None) -> None:
        self.phase = phase
        self._effects.append(Timer(seconds))

    def _answer(self, ticket: int, text: str) -> None:
        self._effects.append(Reply(ticket, text))

    def _answer_waiter(self, text: str) -> None:
        if self._waiter is not None:
            self._answer(self._waiter, text)
            self._waiter = None

    # The table: which events a phase accepts, and their handlers.

    _ALIVE: ClassVar[Mapping[type, Callable[["Machine", Any], None]]] = {
        Transit: _transit,
        Shutdown: _shutdown,
        Abandon: _abandon,
    }
    _BUSY: ClassVar = {**_ALIVE, Ended: _ended}
    _TABLE: ClassVar[Mapping[Phase, Mapping[type, Callable[["Machine", Any], None]]]] = {
        Phase.NEW: {Begin: _begin},
        Phase.STARTING: {**_ALIVE, Started: _started, Unstartable: _unstartable},
        Phase.RUNNING: {**_BUSY, Fired: _fired},
        Phase.LEEWAY: {**_BUSY, Fired: _fired},
        Phase.TERMINATING: {**_BUSY, Fired: _fired},
        Phase.KILLING: _BUSY,
        Phase.RESTING: _ALIVE,
        Phase.BACKOFF: {**_ALIVE, Fired: _fired},
        Phase.OVER: _ALIVE,
    }
