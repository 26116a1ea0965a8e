"""The machine's events and effects: plain values between it and its driver."""

from dataclasses import dataclass
from typing import Literal

from automaton.manifest import State

# Events: from the driver to the machine.


@dataclass(frozen=True, slots=True)
class Begin:
    """Enter the initial state."""


@dataclass(frozen=True, slots=True)
class Transit:
    """`GOTO` or `WAIT`. The answer will carry `ticket`."""

    ticket: int
    verb: Literal["GOTO", "WAIT"]
    tag: str
    input: str = ""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End through the terminal state: `DIE`, or the first signal."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """End now: a second signal."""


@dataclass(frozen=True, slots=True)
class Started:
    """The requested script is running."""


@dataclass(frozen=True, slots=True)
class Unstartable:
    """The requested script could not be started."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The script has ended after `seconds`; `success` is exit status 0."""

    success: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Fired:
    """The timer ran out."""


Event = Begin | Transit | Shutdown | Abandon | Started | Unstartable | Ended | Fired


# Effects: what the driver does for the machine, in order.


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer a command: `OK`, or `KO` and why."""

    ticket: int
    text: str


@dataclass(frozen=True, slots=True)
class Start:
    """Start the state's script, and report `Started` or `Unstartable`."""

    state: State
    input: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Entered:
    """The machine is in a state, because of `cause`."""

    tag: str
    cause: str


@dataclass(frozen=True, slots=True)
class Left:
    """The script of the current state has ended, with this outcome, or `interrupted`."""

    tag: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Terminate:
    """Send SIGTERM to every process that the running script has started."""


@dataclass(frozen=True, slots=True)
class Kill:
    """Send SIGKILL to every process that the running script has started, until none is left."""


@dataclass(frozen=True, slots=True)
class Timer:
    """Set the timer, in seconds, in place of an earlier one; None clears it."""

    seconds: float | None


@dataclass(frozen=True, slots=True)
class Exit:
    """The machine has ended. `failed` if the initial state could not be entered."""

    failed: bool


Effect = Reply | Start | Entered | Left | Terminate | Kill | Timer | Exit
