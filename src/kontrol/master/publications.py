"""What is published, as this master sends it to the agents that report to it.

An agent asks for what is later than what it has, on the connection that it reports on, and is
answered when there is such: so it is sent the latest only, one at a time, and by asking again it
says what it has now. Nothing is queued for an agent that is slow, whatever is published meanwhile.

Invariants: an agent is never sent a version that is not later than the one it has; of answers that
agents have not confirmed, `MOST_IN_FLIGHT` bytes at most were sent within the last `_CONFIRM`
seconds; and one call of each connection waits.
"""

import asyncio
import logging
from binascii import crc32
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kontrol.ensemble.canonical import JSON, NotJSON, parse
from kontrol.ensemble.pod import KEY
from kontrol.master.highwater import HighWater
from kontrol.master.records.published import BELIEVED_VERSION, HIGHEST_VERSION, Published
from kontrol.master.records.records import Records
from kontrol.master.watchcache import WatchCache
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import Event, Store

log = logging.getLogger(__name__)

MOST_WAITING = 3072  # calls that wait for something later: each is a call in progress
MOST_IN_FLIGHT = 32 * 1024 * 1024  # bytes sent to agents that have not confirmed them
AGAIN = 1.0  # seconds between two answers of the same version on one connection

_CONFIRM = 5.0  # seconds for which an answer counts as unread
_FORGET = 120.0  # seconds after an answer, when an agent that asks no more is forgotten
_BEHIND = 5.0  # seconds after which this master is not behind, but the store is
_LATE = 10.0  # seconds after which an agent should have what was published
_LONGEST = 256  # characters of an agent's error
_LONGEST_ABOUT = 4096  # bytes


@dataclass(slots=True)
class Receiver:
    """An agent that asks. `version` is what it has, `error` why it does not have a later one.

    `pod` is the key that it gives; nothing but what is shown depends on it.
    """

    pod: str
    version: int
    error: str | None
    waiting: bool = True
    sent: int = 0  # the version that it was sent last, and when (loop time)
    at: float = float("-inf")
    held: int = 0  # bytes in flight
    timers: tuple[asyncio.TimerHandle, ...] = ()


class Publications:
    """What is published, and who has it; `cache.run` must be running."""

    def __init__(
        self,
        store: Store,
        records: Records,
        highwater: HighWater,
        *,
        silence: float,
        news: asyncio.Event | None = None,
    ) -> None:
        """`silence` is that of the `WatchCache`, in seconds. `news`: while some are `behind`."""
        self.current = Published()
        self.cache = WatchCache(store, records.keys.published, silence=silence)
        self.cache.listen(self._take)
        self._key = records.keys.published
        self._records = records
        self._highwater = highwater
        self._text = b""
        self._sum = 0
        self._receivers: dict[str, Receiver] = {}  # by the connection
        self._news: asyncio.Future[None] | None = None
        self._in_flight = 0
        self._room: deque[asyncio.Future[None]] = deque()
        self._claimed = 0
        self._behind_news = news
        self._since = float("-inf")  # loop time at which the present version came
        self._look: asyncio.TimerHandle | None = None
        self._on_claim: Callable[[], None] = lambda: None

    def on_claim(self, listener: Callable[[], None]) -> None:
        """Call `listener` when `ahead` may have changed."""
        self._on_claim = listener

    def receivers(self) -> Iterator[Receiver]:
        """Return the agents that are connected to this master and follow what is published."""
        return iter(self._receivers.values())

    async def later(self, connection: str, have: object, about: object = None) -> bytes | None:
        """Wait until a version later than `have` is published, and return it as agents keep it.

        None if so many wait that this call should not: ask again after a while. `about` is JSON, an
        object with the pod's key as `pod`, the CRC-32 of what it has as `sum` and, if it failed to
        write the last version, `error`. Raises `Refused`.
        """
        receiver = self._admit(connection, have, about)
        if receiver is None:
            return self._spare() if self.current.version > _version(have) else None
        try:
            text = await self._answer(receiver)
        except asyncio.CancelledError:
            self._forget(connection)
            raise
        receiver.waiting = False
        loop = asyncio.get_running_loop()
        receiver.timers = (
            loop.call_later(_CONFIRM, self._confirm, receiver),
            loop.call_later(_FORGET, self._forget, connection),
        )
        return text

    def _spare(self) -> bytes | None:
        """Return the latest for one that cannot wait, if no other waits for room."""
        if self._room or not self._fits():
            return None
        size = len(self._text)
        self._in_flight += size
        asyncio.get_running_loop().call_later(_CONFIRM, self._free, size)
        return self._text

    def behind(self) -> list[Receiver]:
        """Return the agents that have not taken the present version for `_LATE` seconds."""
        if asyncio.get_running_loop().time() < self._since + _LATE:
            return []
        version = self.current.version
        return [receiver for receiver in self._receivers.values() if receiver.version < version]

    def _look_again(self) -> None:
        """Set the news now and then while agents are behind."""
        self._look = None
        if self._behind_news is not None and self.behind():
            self._behind_news.set()
            self._look_later()

    def _look_later(self) -> None:
        if self._look is not None:
            self._look.cancel()
        self._look = asyncio.get_running_loop().call_later(_LATE + 0.1, self._look_again)

    def _forget(self, connection: str) -> None:
        """Forget an agent whose connection is over, or which asks no more."""
        receiver = self._receivers.pop(connection, None)
        if receiver is not None:
            self._asks(receiver)

    def _make_room(self) -> bool:
        """Forget one that does not ask, if there are many; return whether there is room for one."""
        if len(self._receivers) >= MOST_WAITING:
            for connection, receiver in self._receivers.items():
                if not receiver.waiting:
                    self._forget(connection)
                    return True
            return False
        return True

    def _admit(self, connection: str, have: object, about: object) -> Receiver | None:
        version, (pod, error, total) = _version(have), _about(about)
        receiver = self._receivers.get(connection)
        if receiver is not None and receiver.waiting:
            raise Refused("Busy", "a call of this connection waits already: one at a time")
        if receiver is None:
            if not self._make_room():
                return None
            receiver = self._receivers[connection] = Receiver(pod, version, error)
        receiver.pod, receiver.version, receiver.error = pod, version, error
        receiver.waiting = True
        self._asks(receiver)
        if version > max(self.current.version, self._highwater.version):
            self._claim(version)
        elif version == self.current.version and total not in (None, self._sum):
            self._claim(version + 1)  # it is of before a restore, and another one
        return receiver

    async def _answer(self, receiver: Receiver) -> bytes:
        loop = asyncio.get_running_loop()
        while True:
            while self.current.version <= receiver.version:
                if self._news is None or self._news.done():
                    self._news = loop.create_future()
                await asyncio.shield(self._news)
            if receiver.sent == self.current.version and loop.time() < receiver.at + AGAIN:
                await asyncio.sleep(receiver.at + AGAIN - loop.time())
                continue
            if not self._fits():
                await self._wait_for_room()
                continue
            receiver.sent, receiver.at = self.current.version, loop.time()
            receiver.held = len(self._text)
            self._in_flight += receiver.held
            if self._fits():
                self._pass_on()
            return self._text

    def _fits(self) -> bool:
        return not self._in_flight or self._in_flight + len(self._text) <= MOST_IN_FLIGHT

    async def _wait_for_room(self) -> None:
        room = asyncio.get_running_loop().create_future()
        self._room.append(room)
        try:
            await room
        except asyncio.CancelledError:
            if not room.cancelled():  # it was its turn
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Let the next one that waits look whether there is room."""
        while self._room:
            room = self._room.popleft()
            if not room.done():
                room.set_result(None)
                return

    def _asks(self, receiver: Receiver) -> None:
        """Note that an agent has read what it was sent, or never will."""
        for timer in receiver.timers:
            timer.cancel()
        receiver.timers = ()
        self._confirm(receiver)

    def _confirm(self, receiver: Receiver) -> None:
        """Count what an agent was sent as read."""
        self._free(receiver.held)
        receiver.held = 0

    def _free(self, size: int) -> None:
        self._in_flight -= size
        self._pass_on()

    def _claim(self, version: int) -> None:
        """Note that an agent has a later version, unless this master is just behind."""
        if version > BELIEVED_VERSION:
            # Without its name and version: a flood of lines that are the same is one line.
            log.warning(
                "an agent says that it has a version over %d of what is published, which no tier "
                "reaches: ignored",
                BELIEVED_VERSION,
            )
            return
        if not self._claimed:
            asyncio.get_running_loop().call_later(_BEHIND, self._judge)
        self._claimed = max(self._claimed, version)

    def _judge(self) -> None:
        claimed, self._claimed = self._claimed, 0
        if claimed > max(self.current.version, self._highwater.version):
            log.warning(
                "a pod has version %d of what is published, or another one before it, and etcd has "
                "version %d: the store was restored, or the pod was of another tier",
                claimed,
                self.current.version,
            )
            self._highwater.saw_version(claimed)
            self._on_claim()

    @property
    def ahead(self) -> int | None:
        """A version that was seen, and is later than the store's; None if there is none."""
        seen = self._highwater.version
        return seen if seen > self.current.version else None

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.kv.key == self._key:
                found = None if event.type == "delete" else self._records.published(event.kv)
                ahead = self.ahead
                self.current = found or Published()
                self._text = self.current.text
                self._sum = crc32(self._text)
                self._since = asyncio.get_running_loop().time()
                self._look_later()
                self._highwater.saw_version(self.current.version)
                if ahead is not None:
                    self._on_claim()
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


def _version(have: object) -> int:
    if isinstance(have, int) and not isinstance(have, bool) and 0 <= have <= HIGHEST_VERSION:
        return have
    raise Refused(
        "TypeError", f"the version is {have!r:.40}; expected a number from 0 to {HIGHEST_VERSION}"
    )


def _about(text: object) -> tuple[str, str | None, int | None]:
    """Return the pod's key, empty if it gives none, its error, and the sum of what it has."""
    found: JSON = None
    if isinstance(text, str) and len(text) <= _LONGEST_ABOUT:
        try:
            found = parse(text, depth=2)
        except NotJSON as error:
            raise Refused("TypeError", f"what the pod says is not JSON: {error}") from None
    if not isinstance(found, dict):
        return "", None, None
    pod, why, total = found.get("pod"), found.get("error"), found.get("sum")
    return (
        pod if isinstance(pod, str) and KEY.match(pod) else "",
        why[:_LONGEST] if isinstance(why, str) else None,
        total if isinstance(total, int) and not isinstance(total, bool) else None,
    )
