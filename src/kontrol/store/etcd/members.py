"""etcd's members: one channel each, our own rotation between them, log-in, and bounded calls.

gRPC can balance over addresses, but cannot tell whether a failed write was sent. So each member has
a channel of its own, and a call has two steps: connect (by a request without effect, unless the
channel is known to be connected), then call. A failure of the first step means that nothing was
done.

Invariant of `Client.call`: a write is sent a second time only if the first one was refused.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import quote

import grpc
from grpc import aio

from kontrol.store.etcd.config import EtcdConfig, LoggedOut, Pems, classify
from kontrol.store.etcd.messages import AUTHENTICATE, STATUS, Method, Wire
from kontrol.store.etcd.stream import Pace, Stream
from kontrol.store.protocol import Ambiguous, Denied, NoSpace, StoreError, Unavailable

log = logging.getLogger(__name__)

# Pings find a dead peer under a stream that nothing else probes. etcd closes connections that ping
# more often than every 5 s. gRPC ignores keepalive_timeout_ms without ping_timeout_ms, and without
# max_pings_without_data it stops after two pings of a quiet stream. The timeout, which gRPC also
# uses for TCP_USER_TIMEOUT, is longer than a slow round trip, which would break the connection.
_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
_PAUSE = 0.05  # seconds between two rounds over all members, doubling up to
_MAX_PAUSE = 0.4


class Member:
    """One member: its channel, our token at it, and its pace."""

    def __init__(self, endpoint: str, config: EtcdConfig) -> None:
        self.endpoint = endpoint
        self.pace = Pace(config.timeout)
        self._config = config
        self._pems = config.pems()
        self._channel = _channel(endpoint, self._pems)
        self._calls: dict[str, Wire] = {}
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

    async def connect(self, timeout: float) -> None:
        """Return once the channel is connected. Raises `Unavailable`."""
        if self._channel.get_state() is grpc.ChannelConnectivity.READY:
            return
        try:
            timeout = min(timeout, self._config.connect_timeout)
            await self._unary(STATUS, STATUS.request(), timeout, "")
        except Denied:
            pass  # an answer is a connection
        except StoreError as error:
            await self._renew()
            raise Unavailable(f"cannot connect: {error}") from error

    async def _renew(self) -> None:
        """Use certificates that were replaced on disk; the channel is not connected."""
        try:
            pems = self._config.pems()
        except OSError as error:
            log.warning("etcd's certificates cannot be read: %s", error)
            return
        if pems != self._pems:
            old, self._pems = self._channel, pems
            self._channel = _channel(self.endpoint, pems)
            self._calls.clear()
            await old.close()

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

    async def _unary(self, method: Method, request: Wire, timeout: float, token: str) -> Wire:
        call = self._calls.get(method.path)
        if call is None:
            call = self._calls[method.path] = self._channel.unary_unary(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        try:
            # Not asyncio.timeout: a call cancelled from outside leaks (grpc #43360).
            return await call(request, timeout=max(timeout, 0.001), metadata=_metadata(token))
        except aio.AioRpcError as error:
            code, details = error.code(), error.details()
            raise classify(self.endpoint, code, details or "") from None
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise Ambiguous("the store's client was closed during the call") from None
        except aio.UsageError:
            raise Unavailable("the store's client is closed") from None

    def open(self, method: Method, token: str) -> Stream:
        """Open a stream, which the caller closes."""
        make: Wire = self._channel.stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        return Stream(self.endpoint, self.pace, make, _metadata(token))

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


class Client:
    """All members. Calls go to one of them, and to the next one when that fails."""

    def __init__(self, config: EtcdConfig) -> None:
        self.config = config
        self._members = [Member(endpoint, config) for endpoint in config.endpoints]
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
        raise Unavailable("the store's client is closed")

    @asynccontextmanager
    async def stream(self, method: Method) -> AsyncIterator[Stream]:
        """Open a stream at the current member, and leave that member if the stream fails.

        Raises what `Member.connect`, `Member.log_in` and the body raise.
        """
        member = self.member
        try:
            await member.connect(self.config.connect_timeout)
            token = await member.log_in(member.pace.timeout(self.config.attempt_timeout))
            stream = member.open(method, token)
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
        """Close all channels; calls under way end with an error."""
        self._closed = True
        for member in self._members:
            await member.close()


def _channel(endpoint: str, pems: Pems | None) -> aio.Channel:
    target = quote(endpoint, safe="/:") if endpoint.startswith("unix:") else endpoint
    if pems is None:
        return aio.insecure_channel(target, options=_OPTIONS)
    return aio.secure_channel(target, grpc.ssl_channel_credentials(*pems), options=_OPTIONS)


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    # So a member without a leader refuses the call, instead of waiting without an answer.
    leader = ("hasleader", "true")
    return (leader, ("token", token)) if token else (leader,)


def _now() -> float:
    return asyncio.get_running_loop().time()
