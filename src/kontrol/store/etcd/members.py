"""etcd's members: one connection each, our own rotation between them, log-in, and bounded calls.

A call has two steps: connect, unless there is a connection, then call. A failure of the first step
means that nothing was done.

Invariant of `Client.call`: a write is sent a second time only if the first one was refused.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kontrol.resolver import Resolver
from kontrol.store.etcd.config import EtcdConfig, LoggedOut
from kontrol.store.etcd.connection import Connection
from kontrol.store.etcd.dial import authority, dial
from kontrol.store.etcd.grpc import request_headers
from kontrol.store.etcd.messages import AUTHENTICATE, Method, Wire
from kontrol.store.etcd.stream import Pace, Sink, Stream
from kontrol.store.protocol import Ambiguous, Denied, NoSpace, StoreError, Unavailable

log = logging.getLogger(__name__)

_PAUSE = 0.05  # seconds between two rounds over all members, doubling up to
_MAX_PAUSE = 0.4
_CLOSED = "the store's client is closed"


class Member:
    """One member: our connection to it, our token at it, and its pace."""

    def __init__(self, endpoint: str, config: EtcdConfig, resolver: Resolver) -> None:
        self.endpoint = endpoint
        self.pace = Pace(config.timeout)
        self._config = config
        self._resolver = resolver
        self._context = config.context()
        self._connection: Connection | None = None
        self._former: list[Connection] = []  # those that finish their calls
        self._connecting: asyncio.Task[Connection | Unavailable] | None = None
        self._closed = False
        self._headers: dict[tuple[str, str], bytes] = {}
        self._token: str | None = None if config.user else ""
        self._login = asyncio.Lock()

    async def call(self, method: Method, request: Wire, attempt: float, limit: float) -> Wire:
        """Call this member once, and log in if needed. Raises `StoreError` and `ValueError`.

        It has `attempt` seconds, more if it is slow, and at most `limit`.
        """
        timeout = min(self.pace.timeout(attempt), limit)
        deadline = _now() + timeout
        await self.connect(timeout)
        try:
            return await self._call(method, request, deadline)
        except LoggedOut:
            return await self._call(method, request, deadline)

    async def _call(self, method: Method, request: Wire, deadline: float) -> Wire:
        token = await self.log_in(deadline - _now())
        sent = _now()
        try:
            answer = await self._unary(method, request, deadline - sent, token)
        except LoggedOut as error:
            self.log_out(token, error)
            raise
        except Ambiguous:
            self.pace.timed_out(_now() - sent)
            raise
        self.pace.answered(_now() - sent)
        return answer

    async def connect(self, timeout: float) -> Connection:
        """Return a connection that the member has answered on. Raises `Unavailable`.

        Those who call while one is being made wait for the same one.
        """
        if (connection := self._connection) is not None and connection.usable:
            return connection
        if self._closed:
            raise Unavailable(_CLOSED)
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect(), name="etcd-connect")
        task = self._connecting
        await asyncio.wait({task}, timeout=max(timeout, 0))
        if not task.done():
            raise Unavailable(f"cannot connect: etcd at {self.endpoint}: no answer in time")
        if task.cancelled():
            raise Unavailable(_CLOSED)
        made = task.result()
        if isinstance(made, Unavailable):
            raise Unavailable(str(made))  # one for each that waits
        return made

    async def _connect(self) -> Connection | Unavailable:
        """Make the connection, or return why there is none."""
        try:
            self._read_certificates()
            connection = await dial(
                self.endpoint,
                self._context,
                resolve=self._resolver,
                timeout=self._config.connect_timeout,
            )
            if self._connection is not None:
                self._former.append(self._connection)
            self._former = [each for each in self._former if not each.lost]
            self._connection = connection
            return connection
        except Unavailable as error:
            return error
        finally:
            self._connecting = None

    def _read_certificates(self) -> None:
        """Use certificates that were replaced on disk."""
        try:
            self._context = self._config.context()
        except OSError as error:
            log.warning("etcd's certificates cannot be read: %s", error)

    async def log_in(self, timeout: float) -> str:
        """Return our token at this member, "" without a user. Raises `Unavailable`, `Denied`."""
        if self._token is not None:
            return self._token
        async with self._login:
            if self._token is None:
                self._token = await self._authenticate(timeout)
        return self._token

    async def _authenticate(self, timeout: float) -> str:
        try:
            password = self._config.password()
        except OSError as error:
            raise Denied(f"etcd's password file cannot be read: {error}") from error
        request = AUTHENTICATE.request(name=self._config.user, password=password)
        try:
            answer = await self._unary(AUTHENTICATE, request, timeout, "")
        except Ambiguous as error:
            raise Unavailable(f"cannot log in: {error}") from error
        except StoreError as error:
            if "authentication is not enabled" in str(error):
                return ""
            raise
        token: str = answer.token
        return token

    def log_out(self, token: str, error: LoggedOut) -> None:
        """Forget `token`, which the member refused. Raises `Denied` if we have no user."""
        if not self._config.user:
            raise Denied(f"{error}: set a user and a password file") from error
        if self._token == token:
            self._token = None
            self._headers.clear()

    async def _unary(self, method: Method, request: Wire, timeout: float, token: str) -> Wire:
        if (connection := self._connection) is None or not connection.usable:
            raise Unavailable(f"etcd at {self.endpoint}: the connection ended before the call")
        answer = await connection.unary(
            self._request_headers(method, token),
            request.SerializeToString(),
            timeout=max(timeout, 0.001),
            most=method.most,
        )
        return method.decode(answer, self.endpoint)

    def _request_headers(self, method: Method, token: str) -> bytes:
        headers = self._headers.get((method.path, token))
        if headers is None:
            tls = self._context is not None
            headers = request_headers(method.path, authority(self.endpoint), tls=tls, token=token)
            self._headers[method.path, token] = headers
        return headers

    async def open(
        self, method: Method, token: str, timeout: float, sink: Sink | None = None
    ) -> Stream:
        """Connect and open a stream, which the caller closes. Raises `Unavailable`."""
        connection = await self.connect(timeout)
        await connection.slot(timeout)
        headers = self._request_headers(method, token)
        return Stream(connection, headers, method, pace=self.pace, sink=sink)

    async def close(self) -> None:
        """Close the connections; calls under way end with an error."""
        self._closed = True
        if (task := self._connecting) is not None:
            task.cancel()
            await asyncio.wait({task})
        for connection in (*self._former, self._connection):
            if connection is not None:
                connection.close()


class Client:
    """All members. Calls go to one of them, and to the next one when that fails."""

    def __init__(self, config: EtcdConfig) -> None:
        self.config = config
        resolver = Resolver()
        self._members = [Member(endpoint, config, resolver) for endpoint in config.endpoints]
        self._current = 0
        self._served = True
        self._closed = False

    @property
    def member(self) -> Member:
        """The member that calls go to at present."""
        return self._members[self._current]

    def leave(self, member: Member, error: StoreError) -> None:
        """Call another member from now on, unless that happened already."""
        if member is not self.member or len(self._members) == 1:
            return
        self._current = (self._current + 1) % len(self._members)
        # In an outage the rotation goes on: only its start is news.
        level = logging.WARNING if self._served else logging.DEBUG
        log.log(level, "%s; next is %s", error, self.member.endpoint)
        self._served = False

    async def call(
        self, method: Method, request: Wire, *, writes: bool = False, attempt: float = 0
    ) -> Wire:
        """Call until a member answers or the time is up; `attempt` bounds one attempt, in seconds.

        Raises what the answer means, `NoSpace` at the first one. In the end raises `Unavailable`,
        or `Ambiguous` for a call that `writes`.
        """
        deadline = _now() + self.config.timeout
        attempt = attempt or self.config.attempt_timeout
        tries, pause = 0, _PAUSE
        while not self._closed:
            member = self.member
            try:
                answer = await member.call(method, request, attempt, deadline - _now())
            except NoSpace:
                raise  # the whole cluster is full
            except (Unavailable, Ambiguous) as error:
                self.leave(member, error)
                if writes and isinstance(error, Ambiguous):
                    raise
                last = error
            else:
                self._served = True
                return answer
            tries += 1
            if tries % len(self._members) == 0:
                if _now() + pause >= deadline:
                    raise Unavailable(str(last)) from last
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MAX_PAUSE)
        raise Unavailable(_CLOSED)

    @asynccontextmanager
    async def stream(self, method: Method, sink: Sink | None = None) -> AsyncIterator[Stream]:
        """Open a stream at the current member, and leave that member if the stream fails.

        Raises what `Member.connect`, `Member.log_in` and the body raise.
        """
        member = self.member
        try:
            timeout = member.pace.timeout(self.config.attempt_timeout)
            await member.connect(timeout)
            token = await member.log_in(timeout)
            stream = await member.open(method, token, timeout, sink)
            try:
                yield stream
            except LoggedOut as error:
                member.log_out(token, error)
                raise
            finally:
                stream.close()
        except (Unavailable, Ambiguous) as error:
            self.leave(member, error)
            raise

    async def close(self) -> None:
        """Close all connections; calls under way end with an error."""
        self._closed = True
        for member in self._members:
            await member.close()


def _now() -> float:
    return asyncio.get_running_loop().time()
