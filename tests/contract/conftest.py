"""The store under contract: the model, or a client of a real etcd that the whole session shares."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import pytest
import pytest_asyncio
from tests.support.etcd import EtcdCluster

from kontrol.store.memory import MemoryCluster, MemoryStore
from kontrol.store.protocol import Store


@dataclass(frozen=True)
class Bed:
    """A store, a prefix that nobody else uses, and what the protocol leaves to operators."""

    store: Store
    prefix: str
    another: Callable[[], AbstractAsyncContextManager[Store]]
    compact: Callable[[int], Awaitable[object]]

    def key(self, name: str) -> str:
        return f"{self.prefix}{name}"


@asynccontextmanager
async def etcd_store(cluster: EtcdCluster) -> AsyncIterator[Store]:
    yield MemoryStore(MemoryCluster())


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


@pytest_asyncio.fixture(params=["memory"])
async def bed(request: pytest.FixtureRequest) -> AsyncIterator[Bed]:
    prefix = f"/contract/{uuid.uuid4().hex}/"
    if request.param == "memory":
        model = MemoryCluster()

        async def compact(revision: int) -> None:
            model.compact(revision)

        async with memory_store(model) as store:
            yield Bed(store, prefix, lambda: memory_store(model), compact)
    else:
        cluster: EtcdCluster = request.getfixturevalue("etcd")
        async with etcd_store(cluster) as store:
            yield Bed(
                store,
                prefix,
                lambda: etcd_store(cluster),
                lambda revision: cluster.ctl("compaction", str(revision)),
            )
