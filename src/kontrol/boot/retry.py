"""Retries: an object of the Kubernetes API is requested until it is there and has what is needed.

A watch would report the moment when the pod gets its address, but requires the right to watch every
pod of the namespace; a pod that may only read itself tries again, with growing pauses.
"""

import asyncio
import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from kontrol.boot import NoAddress, Unanswered, objects
from kontrol.boot.kubernetes import Api, Unavailable
from kontrol.ensemble.canonical import JSON
from kontrol.httpclient import HTTPError

log = logging.getLogger(__name__)

_T = TypeVar("_T")
BRIEF = 5.0  # seconds to try for what the boot can do without
_ATTEMPT = 5.0  # seconds for one request, as the original had it
_LAST = 1.0  # seconds that are reserved for the last one


@dataclass(frozen=True, slots=True)
class Retry:
    """How long to try, and how often: `first` seconds apart, then twice that, up to `most`.

    `timeout` is seconds for one object. `end` is the loop time at which all attempts end, for all
    objects together; `start` sets it.
    """

    timeout: float
    first: float = 0.25
    most: float = 5.0
    jitter: Callable[[float, float], float] = field(default=random.uniform, repr=False)
    end: float = math.inf

    def start(self) -> "Retry":
        """Return the same, to end `timeout` seconds from now."""
        return replace(self, end=asyncio.get_running_loop().time() + self.timeout)

    def at_most(self, timeout: float) -> "Retry":
        """Return the same, but for `timeout` seconds if that is less."""
        return replace(self, timeout=min(self.timeout, timeout))

    def pause(self, attempt: int) -> float:
        """Return the seconds after an attempt, from 1; with jitter, since pods start together."""
        delay: float = min(self.most, self.first * 2.0 ** min(attempt - 1, 32))
        return self.jitter(delay / 2, delay)


async def get_object(
    api: Api, path: str, read: Callable[[JSON], _T | None], what: str, retry: Retry
) -> _T:
    """Get the object at `path` until `read` returns something of it.

    Raises `Unanswered` if there was no usable answer within `retry.timeout` seconds and before
    `retry.end`, `NoAddress` if `read` returned None to the end, and the final errors of `Api.get`.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    end = min(start + retry.timeout, retry.end)
    reserve = min(_LAST, (end - start) / 4)
    attempt = 0
    logged = reason = ""
    answered = False
    while True:
        seconds = min(_ATTEMPT, max(end - loop.time(), 0.0))
        try:
            result = read(await api.get(path, seconds))
            if result is not None:
                return result
            answered = True
            reason = f"{what} has no address yet (status.podIP)"
        except Unavailable as error:
            answered = False
            reason = f"the Kubernetes API has not answered for {what}: {error}"
        except HTTPError as error:
            # An attempt that was cut short says less than the one before it.
            if seconds == _ATTEMPT or not reason:
                answered = False
                reason = f"the Kubernetes API has not answered for {what}: {error}"
        except objects.BadObject as error:
            answered = False
            reason = f"the Kubernetes API's answer for {what} is not usable: {error}"
        left = end - loop.time() - reserve
        if left <= 0:
            kind = NoAddress if answered else Unanswered
            raise kind(f"{reason}; gave up after {retry.timeout:g} s")
        if reason != logged:
            log.log(logging.INFO if answered else logging.WARNING, "%s; waiting", reason)
            logged = reason
        attempt += 1
        await asyncio.sleep(min(retry.pause(attempt), left))
