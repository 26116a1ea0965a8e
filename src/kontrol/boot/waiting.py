"""Asking the Kubernetes API until it answers, and until the pod has an address.

A watch would tell the moment when the address comes, but asks for the right to watch every pod
of the namespace; a pod that may only read itself asks again, ever more slowly.
"""

import asyncio
import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from kontrol.boot import objects
from kontrol.boot.errors import NoAddress, Unanswered
from kontrol.boot.http import HTTPError
from kontrol.boot.kubernetes import Api, Unavailable
from kontrol.ensemble.canonical import JSON

log = logging.getLogger(__name__)

_T = TypeVar("_T")
BRIEF = 5.0  # seconds to ask for what the boot can do without
_ATTEMPT = 5.0  # seconds for one request, as the original had it
_LAST = 1.0  # seconds that are kept for a last one


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to ask, and how often: `first` seconds apart, then twice that, up to `most`.

    `total` is seconds for one object. `end` is the loop's time at which all asking ends, for all
    objects together; `start` sets it.
    """

    total: float
    first: float = 0.25
    most: float = 5.0
    jitter: Callable[[float, float], float] = field(default=random.uniform, repr=False)
    end: float = math.inf

    def start(self) -> "Patience":
        """Return the same, to end `total` seconds from now."""
        return replace(self, end=asyncio.get_running_loop().time() + self.total)

    def at_most(self, total: float) -> "Patience":
        """Return the same, but for `total` seconds if that is less."""
        return replace(self, total=min(self.total, total))

    def pause(self, attempt: int) -> float:
        """Return the seconds before an attempt, the first of which is 1; pods start together."""
        delay: float = min(self.most, self.first * 2.0 ** min(attempt - 1, 32))
        return self.jitter(delay / 2, delay)


async def ask(
    api: Api, path: str, read: Callable[[JSON], _T | None], what: str, patience: Patience
) -> _T:
    """Get the object at `path` until `read` returns something of it.

    Raises `Unanswered` if there was no usable answer within `patience.total` seconds and before
    `patience.end`, `NoAddress` if `read` returned None to the end, and what `Api.get` raises for
    good.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    end = min(start + patience.total, patience.end)
    reserve = min(_LAST, (end - start) / 4)
    attempt = 0
    told = reason = ""
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
            # What an attempt says that had less than its time is worth less than what came before.
            if seconds == _ATTEMPT or not reason:
                answered = False
                reason = f"the Kubernetes API has not answered for {what}: {error}"
        except objects.BadObject as error:
            answered = False
            reason = f"the Kubernetes API's answer for {what} is not one: {error}"
        left = end - loop.time() - reserve
        if left <= 0:
            kind = NoAddress if answered else Unanswered
            raise kind(f"{reason}; gave up after {patience.total:g} s")
        if reason != told:
            log.log(logging.INFO if answered else logging.WARNING, "%s; waiting", reason)
            told = reason
        attempt += 1
        await asyncio.sleep(min(patience.pause(attempt), left))
