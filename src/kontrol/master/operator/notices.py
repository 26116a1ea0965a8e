"""Problems that only one master sees, published by way of etcd, so that every status has them.

A pod that is refused keeps its connection to one master, and the others do not see it. So a master
that refuses a sender repeatedly writes what it sees to the store, under a lease of its own, at most
every five seconds; the record expires with the lease when nothing more is written.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Never

from kontrol.ensemble.canonical import JSON, canonical
from kontrol.master.operator.story import Problem
from kontrol.master.records.fields import Damaged, Fields
from kontrol.master.records.keys import Keys
from kontrol.store.protocol import KeyValue, Put, Store, StoreError

log = logging.getLogger(__name__)

_EVERY = 5.0  # seconds
_LEASE = 20  # seconds
_MOST = 20  # problems of one master
_TEXT = 2000  # characters of one
_FIX = "mend"  # the name of `Problem.fix` in etcd, which masters of earlier versions read


class Notices:
    """Publishes what `seen` returns whenever `news` is set, while `run` runs."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        *,
        master: str,
        news: asyncio.Event,
        seen: Callable[[], Sequence[Problem]],
    ) -> None:
        """`master` is the id of this master."""
        self.key = ""
        self._store = store
        self._keys = keys
        self._master = master
        self._news = news
        self._seen = seen
        self._lease = 0

    async def run(self) -> Never:
        """Write until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            seen = self._seen()
            if seen:
                try:
                    await self._write(seen)
                except StoreError as error:
                    log.debug("problems of senders are not published: %s", error)
            await asyncio.sleep(_EVERY)

    async def _write(self, seen: Sequence[Problem]) -> None:
        if not self._lease or not await self._store.refresh(self._lease):
            self._lease = (await self._store.grant(_LEASE)).id
            self.key = self._keys.notice(self._lease)
        problems: list[JSON] = [
            {"kind": each.kind, "what": each.what[:_TEXT], _FIX: each.fix[:_TEXT]}
            for each in seen[:_MOST]
        ]
        value = canonical({"master": self._master, "problems": problems})
        await self._store.txn([], [Put(self.key, value, self._lease)])


def read_notice(kv: KeyValue) -> list[Problem]:
    """Read what a master published; nothing if it is damaged: it expires within seconds."""
    try:
        return decode_notice(kv.value)
    except Damaged as error:
        log.debug("the record %s is damaged: %s; it is not shown", kv.key, error)
        return []


def decode_notice(raw: bytes) -> list[Problem]:
    """Read what a master published; each problem names it. Raises `Damaged`."""
    found = Fields.of(raw)
    master = found.text("master", "?", most=_TEXT)
    published = found.more.get("problems") or []
    if not isinstance(published, list):
        raise Damaged("problems", published, "a list of problems")
    problems = []
    for each in published[:_MOST]:
        one = Fields(each)
        what = one.text("what", most=_TEXT)
        fix, kind = one.text(_FIX, "", most=_TEXT), one.text("kind", "other", most=_TEXT)
        problems.append(Problem(f"{master} says: {what}", fix, kind=kind))
    return problems
