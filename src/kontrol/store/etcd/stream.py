"""A two-way stream of messages that can be given up from outside.

gRPC ends a stream when a pending `read()` is cancelled, and reports its own cancellation as a
`CancelledError` that looks like the task's. Here a read is never cancelled to wait less long:
whoever watches over the stream gives it up with a reason, which the reader then gets raised.
"""

import asyncio
from collections.abc import AsyncIterator

from grpc import aio

from kontrol.store.etcd.errors import classify
from kontrol.store.etcd.messages import Wire
from kontrol.store.protocol import Unavailable


class _Requests:
    """What gRPC takes messages from: not a generator, which gRPC would leave unfinished.

    It must end with the stream: of a stream that etcd ended, gRPC leaves its reader waiting here.
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
    """One open stream; `received` is the loop time of the last message, at first of the start."""

    def __init__(self, endpoint: str, make: Wire, metadata: tuple[tuple[str, str], ...]) -> None:
        self.endpoint = endpoint
        self.received = asyncio.get_running_loop().time()
        self._outgoing: asyncio.Queue[Wire | None] = asyncio.Queue()
        self._reason: BaseException | None = None
        self._call = make(_Requests(self._outgoing), metadata=metadata)

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
        """End the stream. An abandoned one would leak (grpc #43462)."""
        self._call.cancel()
        self._outgoing.put_nowait(None)
