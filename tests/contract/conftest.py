"""The store under contract: the model, or a client of a real etcd that the whole session shares."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import pytest
import pytest_asyncio
from tests.support.etcd import EtcdCluster
from tests.support.memory import MemoryCluster, MemoryStore

from kontrol.store.etcd import EtcdConfig, EtcdStore
from kontrol.store.protocol import Store


@dataclass(frozen=True)
class Bed:
    """A store, a prefix of its own, and what the protocol leaves to operators."""

    store: Store
    prefix: str
    another: Callable[[], AbstractAsyncContextManager[Store]]
    compact: Callable[[int], Awaitable[object]]

    def key(self, name: str) -> str:
        return f"{self.prefix}{name}"


@asynccontextmanager
async def etcd_store(cluster: EtcdCluster) -> AsyncIterator[Store]:
    store = EtcdStore(EtcdConfig(tuple(cluster.endpoints)))
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def memory_store(cluster: MemoryCluster) -> AsyncIterator[Store]:
    store = MemoryStore(cluster)
    try:
        yield store
    finally:
        await store.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def etcd() -> AsyncIterator[EtcdCluster]:
    async with EtcdCluster(size=1) as cluster:
        yield cluster


@pytest.fixture(params=["memory", "etcd"])
def backend(request: pytest.FixtureRequest) -> MemoryCluster | EtcdCluster:
    """A sync fixture, so that etcd's starts in its own loop before the test's runs."""
    if request.param == "memory":
        return MemoryCluster()
    cluster: EtcdCluster = request.getfixturevalue("etcd")
    return cluster


@pytest_asyncio.fixture
async def bed(backend: MemoryCluster | EtcdCluster) -> AsyncIterator[Bed]:
    prefix = f"/contract/{uuid.uuid4().hex}/"

    def connect() -> AbstractAsyncContextManager[Store]:
        if isinstance(backend, MemoryCluster):
            return memory_store(backend)
        return etcd_store(backend)

    async def compact(revision: int) -> None:
        if isinstance(backend, MemoryCluster):
            backend.compact(revision)
        else:
            await backend.ctl("compaction", str(revision))

    async with connect() as store:
        yield Bed(store, prefix, connect, compact)
