"""What the fault tests of the etcd store share: stores on a cluster, events, measured time."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

from tests.support.busy import waited
from tests.support.etcd import CA, CERT, KEY, EtcdCluster

from kontrol.store.etcd import EtcdConfig, EtcdStore
from kontrol.store.protocol import (
    Ambiguous,
    Batch,
    Event,
    Header,
    Put,
    Range,
    Store,
    Unavailable,
)

DEADLINE = 60.0  # seconds for what must happen at all
# For what may take long on a busy machine, and is not about time.
LONG = EtcdConfig(("to be replaced",), attempt_timeout=DEADLINE, timeout=DEADLINE)
QUICK = EtcdConfig(("to be replaced",), connect_timeout=0.5, attempt_timeout=1.0, timeout=2.0)


@asynccontextmanager
async def client(
    endpoints: Sequence[str], config: EtcdConfig | None = None
) -> AsyncIterator[EtcdStore]:
    """A client of `endpoints`, with the default bounds unless `config` has others."""
    config = config or EtcdConfig(tuple(endpoints))
    async with EtcdStore(replace(config, endpoints=tuple(endpoints))) as store:
        yield store


def secured(cluster: EtcdCluster, user: str = "", password: Path | None = None) -> EtcdConfig:
    """Return the default bounds with a client certificate and, given one, a user."""
    return EtcdConfig(
        tuple(cluster.endpoints),
        ca=CA,
        cert=CERT,
        key=KEY,
        user=user,
        password_file=password,
    )


async def put(store: Store, key: str, value: bytes = b"") -> int:
    """Put a key and return its revision."""
    return (await store.txn([], [Put(key, value)])).header.revision


async def insist(store: Store, key: str, value: bytes = b"") -> None:
    """Put a key that no other client writes, through every fault."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                await put(store, key, value)
            except (Unavailable, Ambiguous):
                continue
            return


async def get(store: Store, key: str) -> bytes | None:
    """Return the value of a key, or None."""
    found = (await store.range(Range(key))).kvs
    return found[0].value if found else None


async def now(store: Store) -> Header:
    """Return the header of a read."""
    return (await store.range(Range("/k/none"))).header


async def take(batches: AsyncIterator[Batch], count: int) -> list[Event]:
    """Receive until `count` events have come."""
    events: list[Event] = []
    async with asyncio.timeout(DEADLINE):
        while len(events) < count:
            events += (await anext(batches)).events
    return events


async def confirmation(batches: AsyncIterator[Batch], asked: float) -> list[Event]:
    """Receive until the watch is confirmed as of `asked`; return the events."""
    events: list[Event] = []
    async with asyncio.timeout(DEADLINE):
        while True:
            batch = await anext(batches)
            events += batch.events
            if batch.confirmed >= asked:
                return events


async def refresh(store: Store, lease: int) -> int:
    """Refresh a lease, as a coroutine of its own."""
    return await store.refresh(lease)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fail if the body took longer; where others kept the machine busy, up to five times that."""
    loop = asyncio.get_running_loop()
    start, before = loop.time(), waited()
    yield
    took = loop.time() - start
    allowed = seconds + min(waited() - before, 4 * seconds)
    assert took <= allowed, f"took {took:.2f} s, allowed {allowed:.2f} s"
