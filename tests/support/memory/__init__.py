"""A faithful model of etcd in memory, for simulation and for tests.

`core` is the server's data and rules, synchronous and without a clock; `client` puts it on the
event loop, behind a network whose faults a simulation may choose.
"""

from tests.support.memory.client import MemoryCluster, MemoryStore, Network, Reliable
from tests.support.memory.requests import (
    Alarms,
    Compact,
    Grant,
    Refresh,
    Remaining,
    Request,
    Revoke,
    Txn,
)

__all__ = [
    "Alarms",
    "Compact",
    "Grant",
    "MemoryCluster",
    "MemoryStore",
    "Network",
    "Refresh",
    "Reliable",
    "Remaining",
    "Request",
    "Revoke",
    "Txn",
]
