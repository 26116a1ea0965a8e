"""How long to wait for a member, and a two-way stream that other tasks can end.

gRPC ends a stream when a pending `read()` is cancelled, and reports its own cancellation as a
`CancelledError` that looks like the task's. So no read is cancelled to bound its time. Instead, the
task that watches a stream ends it with a reason, and the reader raises that.
"""

import asyncio
from collections.abc import AsyncIterator

from grpc import aio

from kontrol.store.etcd.config import classify
from kontrol.store.etcd.messages import Wire
from kontrol.store.protocol import Unavailable


class Pace:
    """How long one member takes to answer, from its answers and from timeouts.

    A timeout that a slow etcd can never meet would end every call and open every stream again,
    without end. So timeouts grow with the time that answers take, up to `most`, and shrink with it.
    """

    def __init__(self, most: float) -> None:
        self.seconds = 0.0
        self._most = most

    def timeout(self, usual: float, seconds: float | None = None) -> float:
        """Return the seconds to wait for an answer that a healthy member gives in `usual`.

        With `seconds`, where answers take that long.
        """
        seconds = self.seconds if seconds is None else seconds
        return min(max(usual, 2 * seconds), max(usual, self._most))

    def answered(self, seconds: float) -> None:
        """Note an answer that took that long."""
        self.seconds = max(seconds, self.seconds / 2)

    def timed_out(self, seconds: float) -> None:
        """Note that there was no answer in that time."""
        self.seconds = max(seconds, self.seconds)


class _Requests:
    """The messages to send. Not a generator, which gRPC would leave unfinished.

    It must end with the stream: when etcd ends a stream, gRPC leaves its reader waiting here.
    """

    def __init__(self, queue: asyncio.Queue[Wire | None]) -> None:
        self._queue = queue

    def __aiter__(self) -> AsyncIterator[Wire]:
        return self

    async def __anext__(self) -> Wire:
        message = await self._queue.get()
        if message is None:
            raise StopAsyncIteration
        return message


class Stream:
    """One open stream. `received` is the loop time of the last message, at first `opened`."""

    def __init__(
        self, endpoint: str, pace: Pace, make: Wire, metadata: tuple[tuple[str, str], ...]
    ) -> None:
        self.endpoint = endpoint
        self.pace = pace
        self._seconds = pace.seconds
        self.opened = self.received = asyncio.get_running_loop().time()
        self._outgoing: asyncio.Queue[Wire | None] = asyncio.Queue()
        self._reason: BaseException | None = None
        self._call = make(_Requests(self._outgoing), metadata=metadata)

    def timeout(self, usual: float) -> float:
        """Return the seconds to wait for a message, as `Pace` has it, but no more than at first.

        Otherwise each of several streams to one stalled member would make the next wait longer.
        """
        self._seconds = min(self._seconds, self.pace.seconds)
        return self.pace.timeout(usual, self._seconds)

    def send(self, message: Wire) -> None:
        """Queue a message."""
        self._outgoing.put_nowait(message)

    async def receive(self) -> Wire:
        """Return the next message. Raises what ended the stream."""
        try:
            message = await self._call.read()
        except aio.AioRpcError as error:
            raise classify(self.endpoint, error.code(), error.details() or "") from None
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise self._reason or Unavailable("the store's client was closed") from None
        if message is aio.EOF:
            raise Unavailable(f"etcd at {self.endpoint} ended the stream")
        self.received = asyncio.get_running_loop().time()
        return message

    def give_up(self, reason: BaseException) -> None:
        """End the stream; `receive` raises `reason`."""
        self._reason = self._reason or reason
        self._call.cancel()

    def close(self) -> None:
        """End the stream. One that is not ended leaks (grpc #43462)."""
        self._call.cancel()
        self._outgoing.put_nowait(None)
