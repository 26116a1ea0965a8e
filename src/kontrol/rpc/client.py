"""A ZeroRPC client: any number of concurrent calls over one connection.

The connection is made when a call first needs one. When it ends, its calls raise `LostRemote`, and
the next call makes a new one, with a new look-up of the name.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

from kontrol.rpc.connection import Calling, Connection, Credentials
from kontrol.rpc.errors import CallTimeout, LostRemote, ProtocolError, RemoteError
from kontrol.rpc.events import Done, Event, Failure, Item, Open, Result
from kontrol.rpc.limits import Limits
from kontrol.rpc.security.keys import Keyring, Kind, list_file
from kontrol.rpc.sockets import address, endpoint

__all__ = ["ANSWERS", "Client", "Limits"]

ANSWERS = replace(Limits(), values=1_000_000)
"""The limits of a client: it chose its peer, whose answers may be larger than what unknown clients
may send."""


class Client:
    """Calls the ZeroRPC server at `host` and `port`, a name or an address.

    `heartbeat` is in seconds and should be the server's (ZeroRPC's default is 5): a peer that sends
    nothing for two to three of them is lost. An asynchronous context manager; it connects when
    first used.

    With `keys` it proves its own key of the kind `as_`, and answers only count from a server that
    proves to have the key of one of the kinds in `to`, which are tried in turn. Raises `KeysError`
    if `keys` have none of these.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        heartbeat: float = 5.0,
        limits: Limits | None = None,
        keys: Keyring | None = None,
        as_: Kind = "agent",
        to: tuple[Kind, ...] = ("master",),
    ) -> None:
        self._host = host
        self._port = port
        self._heartbeat = heartbeat
        self._limits = limits or ANSWERS
        self._keys = keys
        self._as: Kind = as_
        self._to = to
        if keys is not None:
            self._credentials(keys)
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            self._connection.close("the client was closed")

    async def call(self, method: str, *args: object, timeout: float) -> object:
        """Call a method that returns, and return what it does; wait at most `timeout` seconds.

        Raises `RemoteError` if the peer answers with an error, `LostRemote`, `CallTimeout`,
        `Unsendable`, and `ProtocolError` if the method streams.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        async with self._channel(Open(method, args), deadline) as (_, channel):
            event = await channel.next(deadline)
        if isinstance(event, Result):
            return event.value
        raise self._unexpected(event, method, timeout, "call it with stream()")

    async def stream(
        self, method: str, *args: object, timeout: float | None = None
    ) -> AsyncGenerator[object, None]:
        """Call a method that streams, and iterate over its items.

        `timeout` is the longest wait for any one item, in seconds; without, a stream may pause
        for as long as the peer's heartbeats come. The peer sends at most `Limits.window` items
        ahead of this iterator; closing it early ends the peer's handler. Raises as `call` does.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        async with self._channel(Open(method, args), deadline) as (connection, channel):
            while True:
                event = await channel.next(deadline)
                if isinstance(event, Done):
                    return
                if not isinstance(event, Item):
                    raise self._unexpected(event, method, timeout, "call it with call()")
                yield event.value
                if (more := channel.grant(len(channel.arrived))) is not None:
                    connection.emit(channel, more)
                deadline = None if timeout is None else loop.time() + timeout

    @asynccontextmanager
    async def _channel(
        self, event: Open, deadline: float | None
    ) -> AsyncGenerator[tuple[Connection, Calling], None]:
        """Open a channel, and leave nothing of it behind."""
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._connected()
                channel = await connection.open(event)
        except TimeoutError:
            where = f"{self._host}:{self._port}"
            raise CallTimeout(f"{where}: {event.name} could not be sent in time") from None
        try:
            yield connection, channel
        finally:
            connection.release(channel)

    async def _connected(self) -> Connection:
        """Return the connection, a new one if there is none or it ended. Raises `LostRemote`."""
        async with self._connecting:
            if self._connection is not None and not self._trusts(self._connection):
                self._connection.close("its key is not accepted any more")
            if self._connection is None or self._connection.ended is not None:
                try:
                    host = await address(self._host, self._port)
                except OSError as error:
                    raise LostRemote(f"{self._host}: {error}") from error
                if self._keys is None:
                    connection = self._new(host)
                    await connection.connect()
                    self._connection = connection
                else:
                    self._connection = await self._trusted(host, self._keys)
            return self._connection

    def _trusts(self, connection: Connection) -> bool:
        """Return whether the key that the server has proved is still one that we accept."""
        if self._keys is None:
            return True
        self._keys.refresh()
        return self._keys.kind(connection.server) in self._to

    def _new(self, host: str, credentials: Credentials | None = None) -> Connection:
        return Connection(
            host,
            self._port,
            heartbeat=self._heartbeat,
            limits=self._limits,
            credentials=credentials,
        )

    async def _trusted(self, host: str, keys: Keyring) -> Connection:
        """Return a connection to a server that has proved its key. Raises `LostRemote`."""
        keys.refresh()
        for credentials in self._credentials(keys):
            connection = self._new(host, credentials)
            try:
                await connection.connect()
                return connection
            except LostRemote:
                if not connection.mistaken:
                    raise
        lists = " or ".join(list_file(kind) for kind in self._to)
        raise LostRemote(
            f"{endpoint(host, self._port)}: it uses no keys, or none that is listed in {lists}: it"
            " is of another cluster, or the lists here are old"
        )

    def _credentials(self, keys: Keyring) -> list[Credentials]:
        """Return what to try, in order. Raises `KeysError`."""
        pair = keys.own(self._as)
        return [Credentials(pair, server) for server in keys.accepted(*self._to)]

    def _unexpected(
        self, event: Event | None, method: str, timeout: float | None, fix: str
    ) -> Exception:
        """Return the error for an unexpected event."""
        if isinstance(event, Failure):
            return RemoteError(event.error, event.message, event.traceback)
        where = f"{method} at {self._host}:{self._port}"
        if event is None:
            return CallTimeout(f"{where}: no answer within {timeout:g} s")
        return ProtocolError(f"{where} answered {event.name}: {fix}")
