"""One timer for the heartbeats of all channels of an endpoint."""

import asyncio
from collections.abc import Callable
from typing import Generic

from kontrol.rpc.channel import C, Channels, K, Lost
from kontrol.rpc.events import Beat


class HeartbeatTimer(Generic[K, C]):
    """Ticks `channels` when they are due and hands each verdict to `act`.

    `behind` says of a channel whether events wait to be read. The timer runs only while channels
    are open, and a channel that closed is not looked for.
    """

    def __init__(
        self,
        channels: Channels[K, C],
        act: Callable[[C, Beat | Lost], None],
        behind: Callable[[C], bool],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._channels = channels
        self._act = act
        self._behind = behind
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Make sure that the timer runs; to be called whenever a channel was added."""
        if self._timer is None and (due := self._channels.due) is not None:
            self._timer = self._loop.call_at(due, self._fire)

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        try:
            for channel, verdict in self._channels.tick(self._loop.time(), self._behind):
                self._act(channel, verdict)
        finally:
            self.start()
