"""The addresses of a tier, and which of them to use next."""

from collections.abc import Callable, Collection, Iterable


class Addresses:
    """Which address of a tier to use next: one that has not failed, else whose failure is oldest.

    So an address that works is used until it fails.
    """

    def __init__(self, shuffle: Callable[[list[str]], None]) -> None:
        self._shuffle = shuffle
        self._known: list[str] = []
        self._failed: dict[str, int] = {}
        self._failures = 0

    def __bool__(self) -> bool:
        return bool(self._known)

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
