"""The addresses of a tier: how they are found, and which of them to use next."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from itertools import chain

from kontrol.agent.connection import reason
from kontrol.ensemble.tiers import Tier
from kontrol.resolver import Resolve

log = logging.getLogger(__name__)


class Addresses:
    """Which address of a tier to use next: one that has not failed, else whose failure is oldest.

    So an address that works is used until it fails.
    """

    def __init__(self, shuffle: Callable[[list[str]], None]) -> None:
        self._shuffle = shuffle
        self._found: dict[str, list[str]] = {}  # those of each name, as last found
        self._known: list[str] = []
        self._failed: dict[str, int] = {}
        self._failures = 0

    async def look_up(self, resolve: Resolve, tier: Tier, timeout: float) -> None:
        """Look up all names of a tier together, for at most `timeout` seconds.

        For a name that is not found in time, the addresses found before are used. Raises `OSError`
        if there is no address.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._find(resolve, tier, host, timeout)) for host in tier.hosts
            ]
        self.learn(chain.from_iterable(self._found.values()))
        if not self._known:
            failures = [failure for task in tasks if (failure := task.result()) is not None]
            raise failures[0] if failures else OSError("the look-up found no address")

    async def _find(
        self, resolve: Resolve, tier: Tier, host: str, timeout: float
    ) -> OSError | None:
        """Look up one name; return the error, if any."""
        try:
            async with asyncio.timeout(timeout):
                self._found[host] = await resolve(host, tier.port)
        except OSError as error:
            log.warning("tier %s: look-up of %s failed: %s", tier, host, reason(error))
            return error
        return None

    def learn(self, found: Iterable[str]) -> None:
        """Replace what is known by what a look-up found; nothing found changes nothing."""
        if known := list(dict.fromkeys(found)):
            self._shuffle(known)
            self._known = known
            self._failed = {key: at for key, at in self._failed.items() if key in known}

    def choose(self, without: Collection[str] = ()) -> str | None:
        """Return the address to use, of all but some; None if there is none."""
        usable = (address for address in self._known if address not in without)
        return min(usable, key=lambda address: self._failed.get(address, 0), default=None)

    def failed(self, address: str) -> None:
        """Use `address` after all others."""
        self._failures += 1
        self._failed[address] = self._failures
