"""One connection to one member: calls and streams over HTTP/2, on an asyncio transport.

`http2` and `grpc` have the protocols; here are the socket, the deadlines and those who wait. What
is sent in one turn of the event loop leaves in one write.

Every call ends once: with its answer, with what the server says, at its deadline, or with the
connection. What ends it tells whether etcd may have done it (`config.classify`): a stream that the
server refused, or that is above the last one of its GOAWAY, was not done.

**A dead peer.** A stream that nothing else probes would wait permanently. So a connection with
open streams that is quiet for `PING_AFTER` is pinged, and ended if nothing comes for
`PING_TIMEOUT`. etcd closes connections that ping more often than every 5 s.
"""

import asyncio
from collections import deque
from typing import Protocol

from kontrol.store.etcd.config import classify
from kontrol.store.etcd.frames import (
    Code,
    DataReceived,
    Event,
    GoneAway,
    HeadersReceived,
    Http2Error,
    Pong,
    Ready,
    StreamReset,
)
from kontrol.store.etcd.grpc import (
    Outcome,
    Splitter,
    Status,
    framed,
    opening,
    outcome,
    timeout_header,
)
from kontrol.store.etcd.http2 import Http2
from kontrol.store.protocol import Ambiguous, Unavailable

PING_AFTER = 10.0  # seconds without a byte from the peer
PING_TIMEOUT = 5.0  # seconds; longer than a slow round trip
MAX_UNSENT = 64 << 20  # bytes that wait for a peer which does not read them
_CLOSED = "the store's client was closed during the call"


class Call(Protocol):
    """What waits for the messages of one stream."""

    splitter: Splitter

    def arrived(self, messages: list[bytes], size: int) -> int:
        """Take messages that came in `size` bytes; return how many bytes to `credit` already."""
        ...

    def ended(self, error: Exception | None) -> None:
        """Note the end: with an error, or None for the status OK."""
        ...


class _Unary:
    """A call with one answer."""

    def __init__(self, endpoint: str, most: int) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.splitter = Splitter(most)
        self._endpoint = endpoint
        self._message: bytes | None = None

    def arrived(self, messages: list[bytes], size: int) -> int:
        if messages:
            self._message = messages[-1]
        return size

    def ended(self, error: Exception | None) -> None:
        if self.answer.done():
            return
        if error is None and self._message is None:
            error = classify(self._endpoint, Status.INTERNAL, "an answer without a message")
        if error is not None:
            self.answer.set_exception(error)
        elif self._message is not None:
            self.answer.set_result(self._message)


class Connection(asyncio.Protocol):
    """One connection. It is made by `connect`, and lost for good once it is not `usable`."""

    def __init__(self, endpoint: str, http: Http2 | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.endpoint = endpoint
        self._http = http or Http2()
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._ready: asyncio.Future[None] = loop.create_future()
        self._calls: dict[int, Call] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()  # for the end of a stream
        self._error: Exception | None = None
        self._flushing = False
        self._last = 0.0  # loop time of the last bytes
        self._timer: asyncio.TimerHandle | None = None

    @property
    def usable(self) -> bool:
        """Whether calls may begin here."""
        return self._error is None and self._http.accepts

    @property
    def lost(self) -> bool:
        """Whether the connection has ended."""
        return self._error is not None

    async def ready(self) -> None:
        """Return once the peer has answered. Raises what ended the connection."""
        await self._ready

    async def unary(self, headers: bytes, message: bytes, *, timeout: float, most: int) -> bytes:
        """Call, and return the answer of at most `most` bytes. Raises what `classify` returns."""
        begun = self._loop.time()
        await self.slot(timeout)
        left = max(begun + timeout - self._loop.time(), 0.001)
        call = _Unary(self.endpoint, most)
        stream = self.open(headers + timeout_header(left), call)
        self._http.send(stream, framed(message), end=True)
        timer = self._loop.call_later(left, self._expire, stream)
        try:
            return await call.answer
        finally:
            timer.cancel()
            self.give_up(stream)

    async def slot(self, timeout: float) -> None:
        """Return once a stream may be opened, without another wait. Raises `Unavailable`."""
        if self.usable and self._http.room > len(self._waiting):
            return
        try:
            async with asyncio.timeout(timeout):
                while self.usable and self._http.room <= 0:
                    self._waiting.append(free := self._loop.create_future())
                    await free
        except TimeoutError:
            raise Unavailable(
                f"etcd at {self.endpoint}: the {self._http.open_streams} streams that it allows "
                "are in use"
            ) from None
        if not self.usable:
            raise Unavailable(f"etcd at {self.endpoint}: the connection ended before the call")

    def open(self, headers: bytes, call: Call) -> int:
        """Open a stream; returns its id. `slot` was awaited."""
        stream = self._http.open(headers)
        self._calls[stream] = call
        self._flush_soon()
        return stream

    def send(self, stream: int, data: bytes) -> None:
        """Send messages that are `framed` already."""
        self._http.send(stream, data)
        if not self._flushing:
            self._flush_soon()

    def credit(self, stream: int, size: int) -> None:
        """Say that `size` bytes of a stream's messages were read."""
        self._http.credit(stream, size)
        self._flush_soon()

    def give_up(self, stream: int) -> None:
        """End a stream without waiting for it; nothing if it has ended."""
        if self._calls.pop(stream, None) is not None:
            self._http.reset(stream)
            self._freed()
            self._flush_soon()

    def close(self) -> None:
        """End the connection and all calls."""
        self._end(Ambiguous(_CLOSED), Code.NO_ERROR)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - as asyncio has it
        self._transport = transport
        if self._error is not None:
            transport.abort()
            return
        self._last = self._loop.time()
        self._timer = self._loop.call_later(PING_AFTER, self._look)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._error is not None:
            return
        self._last = self._loop.time()
        try:
            events = self._http.receive(data)
        except Http2Error as error:
            self._end(self._failure(f"this is not HTTP/2 as it should be: {error}"), error.code)
            return
        for event in events:
            self._handle(event)
        self._freed()
        if self._http.sends:
            self._flush_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        why = f"the connection was lost: {exc}" if exc else "it closed the connection"
        self._end(self._failure(why), Code.NO_ERROR)

    # Events.

    def _handle(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            if (call := self._calls.get(event.stream)) is not None:
                self._data(call, event)
        elif isinstance(event, HeadersReceived):
            self._headers(event)
        elif isinstance(event, StreamReset):
            if event.code == Code.REFUSED_STREAM:
                self._finish(event.stream, self._undone("it refused the stream"))
            else:
                self._finish(event.stream, self._failure(f"it reset the stream, code {event.code}"))
        elif isinstance(event, GoneAway):
            self._go_away(event)
        elif isinstance(event, Ready):
            if not self._ready.done():
                self._ready.set_result(None)
        else:
            assert isinstance(event, Pong)  # noqa: S101 - there is no other; it counts as a byte

    def _data(self, call: Call, event: DataReceived) -> None:
        messages = call.splitter.feed(event.data)
        if isinstance(messages, Outcome):
            self._finish(event.stream, self._classified(messages))
            return
        self._http.credit(event.stream, call.arrived(messages, len(event.data)))
        if event.ended:
            self._finish(
                event.stream, self._classified(Outcome(Status.INTERNAL, "an end without a status"))
            )

    def _headers(self, event: HeadersReceived) -> None:
        if event.ended:
            end = outcome(event.headers)
            error = None if end.status is Status.OK else self._classified(end)
            self._finish(event.stream, error)
        elif (wrong := opening(event.headers)) is not None:
            self._finish(event.stream, self._classified(wrong))

    def _finish(self, stream: int, error: Exception | None) -> None:
        """End one call, if it has not ended."""
        if (call := self._calls.pop(stream, None)) is not None:
            self._http.reset(stream)
            call.ended(error)

    def _go_away(self, event: GoneAway) -> None:
        """End what etcd did not begin, and streams, which begin again elsewhere. Calls go on."""
        for stream, call in list(self._calls.items()):
            if stream > event.last or not isinstance(call, _Unary):
                self._finish(stream, self._undone(f"it goes away {event.text}".rstrip()))

    def _expire(self, stream: int) -> None:
        self._finish(stream, self._classified(Outcome(Status.DEADLINE_EXCEEDED, "")))
        self._freed()
        self._flush_soon()

    def _look(self) -> None:
        """Ping a quiet peer, or end the connection of one that did not answer."""
        quiet = self._loop.time() - self._last
        if quiet < PING_AFTER or not self._calls:
            delay = PING_AFTER - quiet if quiet < PING_AFTER else PING_AFTER
            self._timer = self._loop.call_later(delay, self._look)
        else:
            self._http.ping()
            self._flush()
            self._timer = self._loop.call_later(PING_TIMEOUT, self._judge, self._last)

    def _judge(self, last: float) -> None:
        if self._last > last:
            self._look()
        else:
            why = f"nothing came for {self._loop.time() - last:.0f} s, nor an answer to a ping"
            self._end(self._failure(why), Code.NO_ERROR)

    def _freed(self) -> None:
        """Wake those who wait for a stream, all at the end; close once no more calls can come."""
        if not self._calls and not self._http.accepts:
            self.close()
        room = self._http.room if self.usable else len(self._waiting)
        while self._waiting and room > 0:
            if not (free := self._waiting.popleft()).done():
                free.set_result(None)
                room -= 1

    def _end(self, error: Exception, code: Code) -> None:
        """End everything with `error`, once."""
        if self._error is not None:
            return
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._http.go_away(code)
            self._flush()
            self._transport.abort()
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # it may have no reader any more
        for stream in list(self._calls):
            self._calls.pop(stream).ended(error)
        self._freed()

    # Sending.

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is None or self._transport.is_closing():
            return
        if data := self._http.take():
            self._transport.write(data)
            if self._transport.get_write_buffer_size() > MAX_UNSENT and self._error is None:
                self._end(self._failure("it does not read what is sent"), Code.NO_ERROR)

    # Errors.

    def _classified(self, end: Outcome) -> Exception:
        return classify(self.endpoint, *end)

    def _failure(self, why: str) -> Exception:
        return classify(self.endpoint, Status.UNAVAILABLE, why)

    def _undone(self, why: str) -> Exception:
        return Unavailable(f"etcd at {self.endpoint}: {why}")
