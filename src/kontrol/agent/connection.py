"""Connections to the masters of a tier, and the keepalives that wait for answers on them."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Never, Protocol, TypeGuard

from kontrol.rpc.errors import RemoteError, RpcError

MOST_CONNECTIONS = 3  # of one reporter: to two masters whose answers are late, and a third
_LONGEST_REASON = 300  # characters: the text is a peer's
_REFUSALS = frozenset(
    {
        *("InvalidRecord", "Conflict", "Stale", "Gone", "NotWritten"),
        *("TooManyPods", "TooManyBytes", "TooManyJoins"),
    }
)


class Caller(Protocol):
    """An open connection to a master."""

    async def call(self, method: str, *args: object, timeout: float) -> object:
        """Call and return the answer. Raises `RpcError`, within `timeout` seconds."""
        ...


class MasterConnection:
    """A connection to `address`, opened with the first keepalive; `close` it.

    `sent` is the loop time of the last keepalive, `number` counts it among all of its reporter, and
    `until` is how long it waits.
    """

    def __init__(self, address: str, connecting: AbstractAsyncContextManager[Caller]) -> None:
        self.address = address
        self.raw = ""
        self.number = 0
        self.sent = self.until = 0.0
        self.answer: asyncio.Task[object] | None = None
        """The answer that is waited for, or has not been read yet."""
        self.caller: Caller | None = None
        """What keepalives are sent through, once it is open."""
        self.follower: asyncio.Task[Never] | None = None
        """What else it is used by, until it is closed."""
        self.takes_live = False
        """Whether its master said, when it acknowledged last, that it takes live facts."""
        self._connecting = connecting
        self._stack = AsyncExitStack()

    def send(self, raw: str, number: int, timeout: float) -> None:
        """Send a keepalive, and wait `timeout` seconds at most for its answer."""
        self.raw, self.number = raw, number
        self.sent = asyncio.get_running_loop().time()
        self.until = self.sent + timeout
        self.answer = asyncio.create_task(self._exchange(raw, timeout))

    async def _exchange(self, raw: str, timeout: float) -> object:
        async with asyncio.timeout(timeout):
            if self.caller is None:
                self.caller = await self._stack.enter_async_context(self._connecting)
            return await self.caller.call("ping", raw, timeout=timeout)

    @property
    def answered(self) -> bool:
        """Whether there is an answer, or an error, that was not read yet."""
        return self.answer is not None and self.answer.done()

    @property
    def error(self) -> RpcError | OSError | None:
        """The error, if `answered` with one. Raises what a connection must not raise."""
        return None if self.answer is None else _error(self.answer)

    @property
    def lost(self) -> RpcError | OSError | None:
        """Why `follower` has ended, if it has. Raises what a connection must not raise."""
        follower = self.follower
        return None if follower is None or not follower.done() else _error(follower)

    def read(self) -> object:
        """Return the answer, once `answer` is done. Raises `RpcError`, `OSError`."""
        answer, self.answer = self.answer, None
        return None if answer is None else answer.result()

    async def unfollow(self) -> None:
        """End the follower."""
        follower, self.follower = self.follower, None
        await _end(follower)

    async def close(self) -> None:
        """Close it. An answer that is waited for counts no more."""
        await _end(self.answer, self.follower)
        await self._stack.aclose()


class Connections:
    """The open connections of one reporter, at most `MOST_CONNECTIONS`, one for each address."""

    def __init__(self) -> None:
        self._all: list[MasterConnection] = []

    def __iter__(self) -> Iterator[MasterConnection]:
        return iter(tuple(self._all))

    def waited_for(self) -> set[str]:
        """Return the addresses whose answer is still to be waited for."""
        now = asyncio.get_running_loop().time()
        return {each.address for each in self._all if each.answer is not None and now < each.until}

    async def to(
        self, address: str, connect: Callable[[], AbstractAsyncContextManager[Caller]]
    ) -> MasterConnection:
        """Return a connection to `address` on which no answer is waited for."""
        for each in self:
            if each.address != address:
                continue
            if each.answer is None:
                return each
            await self.close(each)
        if len(self._all) >= MOST_CONNECTIONS:
            await self.close(min(self._all, key=lambda each: each.sent))
        connection = MasterConnection(address, connect())
        self._all.append(connection)
        return connection

    def answers(self, acknowledged: float | None) -> list[MasterConnection]:
        """Return those with an answer, but for what is about a keepalive before `acknowledged`.

        That is the loop time at which the one was sent that was acknowledged last.
        """
        answered = [each for each in self._all if each.answered]
        for each in answered:
            if acknowledged is None or each.sent >= acknowledged:
                continue
            if each.error is None or is_refusal(each.error):
                each.answer = None
        return [each for each in answered if each.answer is not None]

    async def why_failed(self, connection: MasterConnection) -> Exception | None:
        """Return why no acknowledgement or refusal came; None if one did, which is not read yet.

        After an error such as `Unavailable`, the connection stays open for another attempt.
        """
        error = connection.error
        if error is None or is_refusal(error):
            return None
        if isinstance(error, RemoteError):
            connection.answer = None
        else:
            await self.close(connection)
        return error

    async def close(self, *connections: MasterConnection) -> None:
        """Close these."""
        for each in connections:
            await each.close()
            self._all.remove(each)


def is_refusal(error: Exception) -> TypeGuard[RemoteError]:
    """Tell whether a master has answered, and does not accept the keepalive."""
    return isinstance(error, RemoteError) and error.name in _REFUSALS


def reason(error: Exception) -> str:
    """Return why an attempt failed, for people."""
    if isinstance(error, RemoteError):
        return f"{error.name}: {error.message}"[:_LONGEST_REASON]
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


async def _end(*some: "asyncio.Task[Any] | None") -> None:
    tasks = [task for task in some if task is not None]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # no task waits for it


def _error(task: "asyncio.Task[Any]") -> RpcError | OSError | None:
    error = task.exception()
    if error is None or isinstance(error, RpcError | OSError):
        return error
    raise error
