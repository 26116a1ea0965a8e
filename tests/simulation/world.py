"""What all hosts of a simulation share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from tests.simulation.history import Entry
from tests.simulation.network import Endpoint, Network
from tests.simulation.schedule import Schedule
from tests.support.simloop import SimLoop

from kontrol.store.memory import MemoryCluster


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
