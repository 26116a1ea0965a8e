"""The daemon's event loop, on the boot clock: its time includes time spent suspended.

asyncio's own loop uses the monotonic clock, which stands still while the machine is suspended:
after an hour of that no timer would be due, and no gap would be seen. This loop uses `boottime`. So
every timeout, age or gap that is measured in loop time counts the suspension.

The timeout of epoll(7) is on the monotonic clock all the same, so a wait that a suspension
interrupts would continue afterwards for the rest of its time. A timer on the boot clock ends it
then. In all other waits the timeout comes first, and the timer is moved before it expires.

Where there is no such clock or timer (macOS, for development), this is asyncio's own loop.
"""

import asyncio
import selectors
from collections.abc import Callable

from kontrol.process.clock import BootTimer, boottime

_LATE = 0.05  # seconds by which the timer is set later than the timeout that it replaces


class BootLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time` is `clock`, in seconds."""

    def __init__(self, clock: Callable[[], float] = boottime) -> None:
        self._clock = clock
        self._timer = BootTimer()
        super().__init__(_Selector(self._timer))
        if self._timer.fd is not None:
            self.add_reader(self._timer.fd, self._timer.arm, None)  # it only wakes the loop

    def time(self) -> float:
        """Return the time by the clock, in seconds."""
        return self._clock()

    def close(self) -> None:
        """Close the loop, and its timer."""
        super().close()
        self._timer.close()


class _Selector(selectors.DefaultSelector):
    """Does not wait longer because of a suspension."""

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
