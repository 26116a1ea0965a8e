"""What the store's client reaches without a master.

`python -m bench.limits WHAT URLS UNDER_WAY SECONDS` prints the operations per second, and the CPU
that this process spends on each. `WHAT` is `refresh`, of as many leases as are under way, or `put`.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

from kontrol.store.etcd import EtcdConfig, EtcdStore
from kontrol.store.protocol import Put


@dataclass(frozen=True, slots=True)
class Limit:
    """A rate per second, and milliseconds of the client's CPU for each."""

    rate: float
    cpu_ms: float


async def limit(what: str, urls: str, under_way: int, seconds: float) -> Limit:
    """Measure in a process of its own, with nothing else in it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.limits", what, urls, str(under_way), str(seconds)),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    return Limit(**json.loads(output))


async def _measure(what: str, urls: str, under_way: int, seconds: float) -> Limit:
    async with EtcdStore(EtcdConfig(tuple(urls.split(",")))) as store:
        leases = [(await store.grant(60)).id for _ in range(under_way if what == "refresh" else 0)]

        async def refresh(number: int) -> object:
            return await store.refresh(leases[number])

        async def put(number: int) -> object:
            return await store.txn([], [Put(f"bench/{number}", b"x" * 250)])

        operation: Callable[[int], Awaitable[object]] = refresh if what == "refresh" else put
        done, begun = 0, time.monotonic()
        cpu = time.process_time()

        async def one(number: int) -> None:
            nonlocal done
            while time.monotonic() < begun + seconds:
                await operation(number)
                done += 1

        await asyncio.gather(*map(one, range(under_way)))
        taken = time.monotonic() - begun
        return Limit(done / taken, 1000 * (time.process_time() - cpu) / done)


if __name__ == "__main__":
    found = asyncio.run(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
    print(json.dumps(asdict(found)))
