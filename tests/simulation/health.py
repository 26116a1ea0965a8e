"""Which nodes could reach each other, and for how long: kept along a history, for checks."""

from collections.abc import Iterator

from tests.simulation.history import STORE, Entry, Fault, Process, Settings

NEVER = float("inf")
TIMEOUT = 7.0  # seconds, of a request to the store; EtcdConfig.timeout is 6
_BAD = ("lossy", "mute", "denied")  # on a link to the store: streams that are open go on
FAR = 20.0  # seconds: with a shorter TTL round trips of 5 s are too long for a keepalive


def is_agent(node: str) -> bool:
    """Tell an agent's node from a master's, by its name."""
    return node.startswith("p")


class Health:
    """Everything that is up and unbroken, and since when."""

    def __init__(self) -> None:
        self.settings: dict[str, Settings] = {}  # of each master, as last started
        self._up: dict[str, float] = {STORE: float("-inf")}  # since when
        self._claims: dict[str, tuple[str, str]] = {}  # an agent's id and key
        self._faults: set[tuple[str, str, str]] = set()
        self._reach: dict[tuple[str, str], float] = {}  # (agent, master): since when
        self._serving = False  # whether some master has the store
        self._changed = float("-inf")  # when that last changed
        self._faulty: list[tuple[float, float]] = []  # begin, end: when there was any fault
        self._rough, self._smooth = False, float("-inf")  # whether it is, or since when it is not
        self._outages: list[tuple[float, float]] = []  # begin, end

    def apply(self, entry: Entry) -> bool:
        """Take an entry in; return whether it says anything."""
        match entry:
            case Process(at, node, True):
                self._up[node] = at
                self._claims[node] = (entry.id or node, entry.key)
                if entry.settings is not None:
                    self.settings[node] = entry.settings
            case Process(at, node, False):
                self._up.pop(node, None)
                self._claims.pop(node, None)
                self._faults.discard(("paused", "", node))  # a new process is not
            case Fault(at, what, a, b, on):
                fault = (what, min(a, b), max(a, b))
                (self._faults.add if on else self._faults.discard)(fault)
            case _:
                return False
        since = self._faulty[-1] if self._faulty else (NEVER, at)
        if self._faults and since[1] < NEVER:
            self._faulty.append((at, NEVER))
        elif not self._faults and since[1] == NEVER:
            self._faulty[-1] = since[0], at
        if self._rough != (rough := any(STORE in fault[1:] for fault in self._faults)):
            self._rough, self._smooth = rough, entry.at
        masters = [node for node in self._up if not is_agent(node) and node != STORE]
        serving = [m for m in masters if self.works(m) and self._open(m, STORE)]
        sound = [m for m in serving if self._sound(m)]
        agents = [p for p in self._up if is_agent(p) and self.works(p) and not self._conflicting(p)]
        self._reach = {
            (p, m): self._reach.get((p, m), at)
            for p in agents
            for m in sound
            if self._open(p, m) and not self._fault("lossy", p, m)
        }
        if bool(serving) != self._serving:
            if serving:
                self._outages.append((self._changed, at))
            self._serving, self._changed = bool(serving), at
        return True

    def fault_since(self, at: float) -> float:
        """Return since when some fault or other stood at a time; `NEVER` if none did."""
        return next((begin for begin, end in self._faulty if begin <= at <= end), NEVER)

    def reach(self, name: str, key: str, at: float) -> float:
        """Return for how long one process has reported this id and key, and could all along.

        That is: one same serving master was within its sound reach.
        """
        return max(
            (
                at - since
                for (p, _), since in self._reach.items()
                if self._claims[p][0] == name and self._claims[p][1] in (key, "")
            ),
            default=0.0,
        )

    def reaching(self, at: float) -> Iterator[tuple[str, tuple[str, str], float]]:
        """Yield each agent's node that could report, its id and key, and for how long it could.

        With one same master that has the store, and is not far from it.
        """
        for p, claim in self._claims.items():
            longest = max((at - t for (q, _), t in self._reach.items() if p == q), default=0.0)
            if longest:
                yield p, claim, longest

    def since_outage(self, length: float, at: float) -> float:
        """Return the time since some master has had the store again, after `length` of none."""
        if not self._serving:
            return 0.0 if at - self._changed > length else NEVER
        ends = [end for begin, end in self._outages if end - begin > length]
        return at - ends[-1] if ends else NEVER

    def since_start(self, node: str, at: float) -> float:
        """Return for how long this process of `node` has run, 0 if it does not."""
        return at - self._up[node] if node in self._up else 0.0

    @property
    def ttls(self) -> list[float]:
        """The TTL of each master."""
        return [settings.ttl for settings in self.settings.values()]

    def rough(self, at: float) -> bool:
        """Whether requests of some master to the store may take until their time-out, as of now."""
        return self._rough or at - self._smooth < TIMEOUT

    def works(self, node: str) -> bool:
        """Whether it is up and not paused."""
        return node in self._up and ("paused", "", node) not in self._faults

    def has_store(self, master: str) -> bool:
        """Whether a master has the store without any fault between, and the store takes all."""
        return (
            self.works(master)
            and self._open(master, STORE)
            and not any(self._fault(what, master, STORE) for what in (*_BAD, "distant", "lag"))
            and not self._fault("full", "", STORE)
        )

    def _sound(self, master: str) -> bool:
        far = min(self.ttls, default=FAR) < FAR
        bad = any(self._fault(what, master, STORE) for what in _BAD)
        return not bad and not (far and self._fault("distant", master, STORE))

    def _conflicting(self, node: str) -> bool:
        """Whether another process reports under the same id, or at the same key."""
        name, key = self._claims[node]
        return any(
            other != node and (claim[0] == name or (claim[1] == key and key))
            for other, claim in self._claims.items()
        )

    def _open(self, a: str, b: str) -> bool:
        cut = any(self._fault(what, a, b) for what in ("cut", "stall"))
        return not cut and (STORE not in (a, b) or self.works(STORE))

    def _fault(self, what: str, a: str, b: str) -> bool:
        return (what, a, b) in self._faults or (what, b, a) in self._faults
