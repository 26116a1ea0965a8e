"""The daemon's event loop, on the boot clock: what it measures includes time spent suspended.

asyncio's own loop tells the monotonic clock, which stands still while the machine is suspended:
after an hour of it no timer would be due, and no silence seen. This loop tells `boottime` instead.
So whatever time-out, age or gap is measured in loop time counts the suspension.

The time-out of epoll(7) is on the monotonic clock all the same, so that a wait that a suspension
interrupts would go on afterwards for as long as was left of it. A timer on the boot clock ends it
then; in all other waits the time-out comes first, and the timer is moved on before it expires.

Where there is no such clock or timer (macOS, for development), this is asyncio's own loop.
"""

import asyncio
import selectors
from collections.abc import Callable

from kontrol.process.clock import BootTimer, boottime

_LATE = 0.05  # seconds that the timer is set behind the time-out that it stands in for


class BootLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time` is `clock`, in seconds."""

    def __init__(self, clock: Callable[[], float] = boottime) -> None:
        self._clock = clock
        self._timer = BootTimer()
        super().__init__(_Selector(self._timer))
        if self._timer.fd is not None:
            self.add_reader(self._timer.fd, self._timer.arm, None)  # having woken the loop is all

    def time(self) -> float:
        """Return the time by the clock, in seconds."""
        return self._clock()

    def close(self) -> None:
        """Close the loop, and its timer."""
        super().close()
        self._timer.close()


class _Selector(selectors.DefaultSelector):
    """Waits no longer for a suspension in between."""

    def __init__(self, timer: BootTimer) -> None:
        super().__init__()
        self._timer = timer
        self._at = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for events, or for `timeout` seconds of the boot clock."""
        if timeout is not None and timeout > 0:
            at = boottime() + timeout
            # Most waits are for the same time as the one before, and need not set it again.
            if not at <= self._at <= at + 2 * _LATE:
                self._at = at + _LATE
                self._timer.arm(self._at)
        return super().select(timeout)
