"""What all hosts of a simulation share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random

from tests.simulation.history import Entry
from tests.simulation.network import Endpoint, Network
from tests.simulation.schedule import Schedule
from tests.support.memory import MemoryCluster
from tests.support.simloop import NODE, Clock, SimLoop

EPOCH = 1e9  # seconds since 1970, when the world began
DAY = 24 * 3600.0
YEAR = 365 * DAY


@dataclass
class World:
    """What all hosts share."""

    loop: SimLoop
    schedule: Schedule
    network: Network
    cluster: MemoryCluster
    record: Callable[[Entry], None]
    rng: Random
    masters: Mapping[str, Endpoint]
    failing: int = 0  # how many reasons there are for callbacks to fail, or to be slow
    slow: int = 0
    walls: dict[str, float] = field(default_factory=dict)  # how wrong each node's wall clock is
    wanted: int = 0  # changes of the desired state so far
    settling: bool = False  # whether all faults are over, and callbacks ask for nothing more
    asking: Random = field(init=False)  # for what callbacks ask

    def __post_init__(self) -> None:
        self.asking = Random(f"again {self.schedule.seed}")

    def ask(self) -> tuple[float | None, str | None]:
        """Return in how many seconds a callback asks to run again, and its note."""
        rng, plain = self.asking, self.schedule
        if not plain.asks or self.settling or rng.random() < 0.4:
            return None, None
        again = rng.choice((None, 0.1, 1.0, 5.0, plain.fover, plain.ttl / 2, 2 * plain.ttl))
        return again, rng.choice((None, "a note"))

    def date(self) -> str:
        """Return what the wall clock of the present node shows, as RFC 3339."""
        if not self.schedule.skewed:
            return "2026-01-01T00:00:00Z"
        shown = datetime.fromtimestamp(self.wall(self.walls.get(NODE.get(), 0.0)), UTC)
        return shown.isoformat(timespec="seconds").replace("+00:00", "Z")

    def wall(self, off: float) -> float:
        """Return what a wall clock shows that is wrong by `off` seconds, in Unix seconds."""
        return EPOCH + self.loop.world + off

    def boot(self, host: str, start: int) -> str:
        """Return a new node of `host`, with its clocks."""
        node = f"{host}#{start}"
        if self.schedule.skewed:
            seed = self.schedule.seed
            self.loop.set_clock(node, self.clock(host))
            off = (0, 0, 0, 0.4, -0.4, 90, -90, -DAY, 2 * DAY, -YEAR)
            self.walls[node] = Random(f"wall {seed} {node}").choice(off)
        return node

    def clock(self, host: str) -> Clock:
        """Return the boot clock of `host`, which no suspension stops."""
        rng = Random(f"clock {self.schedule.seed} {host}")
        return Clock(rng.uniform(0.95, 1.05), rng.uniform(0, 1e6))
