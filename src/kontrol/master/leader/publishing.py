"""What the run under way publishes: each document by a write of its own, fenced by term and run.

It is an early commit: it stands, whether or not the run succeeds. Invariants: one write of the
ledger is under way at a time, so the run's end waits for these; and none begins after that.
"""

import asyncio
import logging
from collections.abc import Callable

from kontrol.ensemble.canonical import JSON
from kontrol.master.leader.ledger import Ledger
from kontrol.master.records.published import NotPublished
from kontrol.master.term import Deposed
from kontrol.store.protocol import StoreError

log = logging.getLogger(__name__)

MOST_PUBLISHING = 16  # documents of a run that wait to be written


class RunPublisher:
    """Publishes for one run, until `end`. `deposed` says that its term was found to be over.

    `version` is the last one that this run published, None if it published nothing new.
    """

    def __init__(self, ledger: Ledger, run: int, wall: Callable[[], str]) -> None:
        """`wall` returns the date and time, RFC 3339."""
        self.deposed: asyncio.Future[Deposed] = asyncio.get_running_loop().create_future()
        self.version: int | None = None
        self._ledger = ledger
        self._run = run
        self._wall = wall
        self._writes: set[asyncio.Task[int]] = set()
        self._turn = asyncio.Lock()
        self._ended = False

    async def publish(self, key: str, document: JSON, *, remove: bool = False) -> int:
        """Publish a document, or `remove` the one of that key; returns the version.

        It goes on if the caller is cancelled. Raises `NotPublished`.
        """
        if self._ended:
            raise NotPublished(f"run {self._run} has ended")
        if len(self._writes) >= MOST_PUBLISHING:
            raise NotPublished(f"{MOST_PUBLISHING} documents of this run wait to be written: wait")
        write = asyncio.create_task(self._write(key, document, remove=remove))
        self._writes.add(write)
        write.add_done_callback(self._wrote)
        return await asyncio.shield(write)

    async def _write(self, key: str, document: JSON, *, remove: bool) -> int:
        async with self._turn:
            published = self._ledger.published
            if remove:
                now = published.without_document(key)
            else:
                now = published.with_document(key, document, run=self._run)
            if now is None:
                return published.version
            try:
                self.version = await self._ledger.publish(now, edited=self._wall())
            except Deposed as error:
                if not self.deposed.done():
                    self.deposed.set_result(error)
                raise NotPublished(f"this master does not lead any more: {error}") from error
            except StoreError as error:
                raise NotPublished(f"etcd refused it: {error}") from error
            log.info("run %d published %s: version %d", self._run, key, self.version)
            return self.version

    def _wrote(self, write: asyncio.Task[int]) -> None:
        self._writes.discard(write)
        if not write.cancelled():
            write.exception()  # the caller may be gone

    async def end(self) -> None:
        """Publish nothing more, and wait for what is being written."""
        self._ended = True
        if self._writes:
            await asyncio.wait(self._writes)

    async def abandon(self) -> None:
        """Give up what is still being written: nothing more is written in this term."""
        for write in self._writes:
            write.cancel()
        await self.end()
