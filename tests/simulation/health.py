"""Who could reach whom, and for how long: kept along a history, for the checks that need it."""

from tests.simulation.history import STORE, Entry, Fault, Process

NEVER = float("inf")


def is_agent(node: str) -> bool:
    """Tell an agent's node from a master's, by its name."""
    return node.startswith("p")


class Health:
    """Everything that is up and unbroken, and since when."""

    def __init__(self) -> None:
        self._up: set[str] = {STORE}
        self._faults: set[tuple[str, str, str]] = set()
        self._reach: dict[tuple[str, str], float] = {}  # (agent, master): since when
        self._serving = False  # whether some master has the store
        self._changed = float("-inf")  # when that last changed
        self._outages: list[tuple[float, float]] = []  # begin, end

    def apply(self, entry: Entry) -> None:
        """Take an entry in."""
        match entry:
            case Process(at, node, up):
                (self._up.add if up else self._up.discard)(node)
            case Fault(at, what, a, b, on):
                fault = (what, min(a, b), max(a, b))
                (self._faults.add if on else self._faults.discard)(fault)
            case _:
                return
        masters = {node for node in self._up if not is_agent(node) and node != STORE}
        serving = {m for m in masters if self._works(m) and self._open(m, STORE)}
        self._reach = {
            (p, m): self._reach.get((p, m), at)
            for p in sorted(self._up)
            for m in sorted(serving)
            if is_agent(p)
            and self._works(p)
            and self._open(p, m)
            and not self._lossy(p, m)
            and not self._lossy(m, STORE)
        }
        if bool(serving) != self._serving:
            if serving:
                self._outages.append((self._changed, at))
            self._serving, self._changed = bool(serving), at

    def reach(self, agent: str, at: float) -> float:
        """Return for how long `agent` has had one same serving master within sound reach."""
        return max((at - since for (p, _), since in self._reach.items() if p == agent), default=0.0)

    def since_outage(self, length: float, at: float) -> float:
        """Return the time since some master has had the store again, after `length` of none."""
        if not self._serving:
            return 0.0 if at - self._changed > length else NEVER
        ends = [end for begin, end in self._outages if end - begin > length]
        return at - ends[-1] if ends else NEVER

    def _works(self, node: str) -> bool:
        return node in self._up and ("paused", "", node) not in self._faults

    def _open(self, a: str, b: str) -> bool:
        ends = min(a, b), max(a, b)
        cut = any((what, *ends) in self._faults for what in ("cut", "stall"))
        return not cut and (STORE not in (a, b) or self._works(STORE))

    def _lossy(self, a: str, b: str) -> bool:
        return ("lossy", min(a, b), max(a, b)) in self._faults
