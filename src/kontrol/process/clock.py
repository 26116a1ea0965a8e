"""The clock of all deadlines, and a timer on it.

CLOCK_BOOTTIME rises evenly, is the same for every process of the machine, and, unlike
CLOCK_MONOTONIC, counts the time that the machine was suspended: a leader that was suspended past
its deadline is late by all of it. For the same reason a deadline is awaited with a timer on this
clock: the timeout of `poll` stands still during a suspension.
"""

import os
import sys
import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_TFD_TIMER_ABSTIME = 1  # include/uapi/linux/timerfd.h


def boottime() -> float:
    """Return seconds since boot, suspension included (macOS, for development: without)."""
    return time.clock_gettime(_CLOCK)


class BootTimer:
    """A descriptor, `fd`, that is readable once a point of `boottime` has passed.

    `fd` is None where there are no such timers; then await `remaining` milliseconds.
    """

    def __init__(self) -> None:
        self.fd: int | None = None
        self._at: float | None = None
        if sys.platform != "linux":
            return
        import ctypes  # Python has os.timerfd_create only since 3.13

        self._ctypes = ctypes
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._check(self._libc.timerfd_create(_CLOCK, os.O_CLOEXEC))

    def arm(self, at: float | None) -> None:
        """Become readable at `at` seconds of `boottime`, now if that has passed; None: never.

        This replaces an earlier time, and resets the descriptor.
        """
        if at == self._at:
            return
        self._at = at
        if self.fd is None:
            return
        nanoseconds = 0 if at is None else max(1, int(at * 1e9))  # 0 would disarm
        seconds, nanoseconds = divmod(nanoseconds, 1_000_000_000)
        # struct itimerspec: interval, then value; each a pair of seconds and nanoseconds.
        spec = (self._ctypes.c_long * 4)(0, 0, seconds, nanoseconds)
        self._check(self._libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, spec, None))

    def remaining(self) -> int | None:
        """Return the milliseconds to wait where there is no timer, rounded up; None: no limit."""
        if self._at is None or self.fd is not None:
            return None
        return max(0, int((self._at - boottime()) * 1000) + 1)

    def close(self) -> None:
        """Close the descriptor, once."""
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)

    def _check(self, result: int) -> int:
        if result < 0:
            number = self._ctypes.get_errno()
            raise OSError(number, f"timerfd: {os.strerror(number)}")
        return result
