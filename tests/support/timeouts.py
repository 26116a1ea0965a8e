"""Time-outs that fail the test that took too long, and nothing else.

pytest-timeout lets its timer run over the whole protocol of a test. If it goes off while pytest
writes the report, as it does on a busy machine, that is an internal error, which ends the run and
hides what had failed. So its limit (the option `timeout`, the mark of that name) is applied here to
set-up, call and teardown, each by itself: what is raised there is a failure of that test.

asyncio swallows what is raised within a callback, or gives it to the task that happened to run. So
the timer goes off again; a test that outlives that too is stuck for good, and its process ends, by
which pytest-xdist knows the test, counts it as failed and starts another worker.
"""

import faulthandler
import os
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

LIMIT = pytest.StashKey[float]()
AGAIN = 10.0  # seconds between one try to end a test and the next
TRIES = 4


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:  # noqa: ANN401 - untyped
    """Note the limit, in place of starting the plug-in's timer."""
    item.stash[LIMIT] = float(settings.timeout)
    return True


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_timeout_cancel_timer() -> bool:
    """Stop, as for a debugger."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    with _limited(item, "set-up"):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    with _limited(item, "call"):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    with _limited(item, "teardown"):
        return (yield)


@contextmanager
def _limited(item: pytest.Item, phase: str) -> Iterator[None]:
    limit = item.stash.get(LIMIT, 0.0)
    if not limit:
        yield
        return
    tries = 0

    def late(_number: int, _frame: object) -> None:
        nonlocal tries
        tries += 1
        text = f"time-out: {phase} took more than {limit:g} s"
        if tries > TRIES:
            print(f"{item.nodeid}: {text}, and cannot be ended", file=sys.__stderr__)
            faulthandler.dump_traceback(file=2)
            os._exit(1)
        pytest.fail(text)

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
