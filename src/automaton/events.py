"""What the machine is told, and what it asks for: plain values between it and its driver."""

from dataclasses import dataclass
from typing import Literal

from automaton.manifest import State

# Events: what the driver tells.


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
    """The script asked for runs."""


@dataclass(frozen=True, slots=True)
class Unstartable:
    """The script asked for could not be started."""

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


# Effects: what the driver does, in order.


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer a command: `OK`, or `KO` and why."""

    ticket: int
    text: str


@dataclass(frozen=True, slots=True)
class Start:
    """Start the state's script, and say `Started` or `Unstartable`."""

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
    """The script of the current state has ended, so (`interrupted` is an outcome here)."""

    tag: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM all that the running script has started."""


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL all that the running script has started, until nothing is left of it."""


@dataclass(frozen=True, slots=True)
class Timer:
    """Set the timer, in seconds, or clear it; it replaces the one before."""

    seconds: float | None


@dataclass(frozen=True, slots=True)
class Exit:
    """All is done; nothing follows. `failed` if the initial state could not be entered."""

    failed: bool


Effect = Reply | Start | Entered | Left | Terminate | Kill | Timer | Exit
