"""What a tier has in etcd: for what no daemon can be asked."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from tests.e2e.hub import DEADLINE

from kontrol.master.records.keys import Keys
from kontrol.master.watchcache import WatchCache
from kontrol.store.etcd import EtcdConfig, EtcdStore
from kontrol.store.protocol import KeyValue, Range, Store


class Spy:
    """Shows a prefix of the store, for tests that wait for what no daemon says."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._follower = WatchCache(store, prefix, silence=2.0)
        self._follower.listen(lambda _: self._news.set())
        self._news = asyncio.Event()

    async def until(self, condition: Callable[[Mapping[str, KeyValue]], bool]) -> None:
        """Wait until the entries are as asked."""
        try:
            async with asyncio.timeout(DEADLINE):
                await self._follower.complete.wait()
                while not condition(self._follower.entries):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"the store has {sorted(self._follower.entries)}") from None

    async def pods(self, *ids: str) -> None:
        """Wait until the pods with exactly these ids live."""
        wanted = sorted(ids)
        await self.until(
            lambda entries: sorted(json.loads(kv.value)["id"] for kv in entries.values()) == wanted
        )

    async def run(self) -> None:
        await self._follower.run()


@contextlib.asynccontextmanager
async def spying(endpoints: Sequence[str], app: str, part: str = "pods/") -> AsyncIterator[Spy]:
    """Follow a part of what a tier has in the store."""
    async with EtcdStore(EtcdConfig(tuple(endpoints))) as store:
        spy = Spy(store, Keys.of("default", app).root + part)
        task = asyncio.create_task(spy.run())
        try:
            yield spy
        finally:
            task.cancel()
            await asyncio.wait([task])


async def entries(endpoints: Sequence[str], app: str) -> dict[int, dict[str, Any]]:
    """Return the ledger of a tier: by number, what became of each run that ended."""
    async with EtcdStore(EtcdConfig(tuple(endpoints))) as store:
        found = await store.range(Range(Keys.of("default", app).runs, prefix=True))
        records = [json.loads(kv.value) for kv in found.kvs]
        return {record["run"]: record for record in records}
