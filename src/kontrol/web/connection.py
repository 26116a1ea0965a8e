"""One connection: requests in, answers out, in order, by HTTP/1.1.

h11 knows the protocol and holds no socket; this is the glue to asyncio's streams, with a bound on
each wait for a client, and on all that is kept of what it sends.

Invariant: a request is answered once, and an answer is sent completely or the connection ends.
While `waiting` is true no answer is owed, and the connection may be evicted; so it may while
`unread` is true, since a client that does not read loses nothing.
"""

import asyncio
import contextlib
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable

import h11

from kontrol.web.message import HttpError, Limits, Request, Response

_CHUNK = 8 * 1024  # bytes read in one go
_LINGER_BYTES = 256 * 1024

_ALWAYS = (
    ("Server", "kontrol"),
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)
"""Headers of every answer: nothing is cached, framed, sniffed, or sent to another site."""

_REASONS = {
    200: b"OK",
    202: b"Accepted",
    204: b"No Content",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    409: b"Conflict",
    412: b"Precondition Failed",
    413: b"Content Too Large",
    414: b"URI Too Long",
    421: b"Misdirected Request",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    503: b"Service Unavailable",
    505: b"HTTP Version Not Supported",
}
"""The reason phrases of RFC 9110, 6585 and 7540."""

Respond = Callable[[Request], Awaitable[Response]]

_Sent = h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage


class Connection:
    """Serves one client until either side closes."""

    def __init__(
        self,
        reader: StreamReader,
        writer: StreamWriter,
        peer: str,
        *,
        respond: Respond,
        limits: Limits,
        body_limit: Callable[[Request], int] | None = None,
    ) -> None:
        """`respond` answers a request, and raises nothing but cancellation.

        `body_limit` returns how many bytes the body of a request may have, judged by its head; by
        default as `limits` has it.
        """
        self.waiting = True
        self.unread = False  # whether the client has yet to take what was sent
        self._reader = reader
        self._writer = writer
        self._peer = peer
        self._respond = respond
        self._limits = limits
        self._body_limit = body_limit or (lambda _: limits.body)
        self._most_body = limits.body  # of the request that is being read
        writer.transport.set_write_buffer_limits(0)  # what is drained has left the process
        self._http = h11.Connection(h11.SERVER, limits.head)
        self._bare = False  # whether the answer owed is to a `HEAD`: its headers alone

    async def run(self) -> None:
        """Serve. A client that goes away, or is too slow, ends it without an answer."""
        try:
            while await self._cycle():
                self._http.start_next_cycle()
            self.unread = True
            async with asyncio.timeout(self._limits.send):
                if not self._writer.is_closing():  # Python 3.11.2 cannot abort what is closed twice
                    self._writer.close()
                await self._writer.wait_closed()
        except OSError:  # timeouts and TLS's errors among them
            pass
        finally:
            self._writer.transport.abort()

    async def _cycle(self) -> bool:
        """Read one request and answer it; returns whether another may follow."""
        self.waiting = True
        try:
            request = await self._request()
        except h11.RemoteProtocolError as error:
            await self._refuse(self._judge(error))
            return False
        except HttpError as error:
            await self._refuse(error)
            return False
        if request is None:
            return False
        self.waiting = False
        await self._send(await self._respond(request))
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _request(self) -> Request | None:
        """Read one request; None if the client closes, or sends nothing.

        Raises `HttpError` and `h11.RemoteProtocolError`.
        """
        limits, loop = self._limits, asyncio.get_running_loop()
        begun = bool(self._http.trailing_data[0])
        head: h11.Request | None = None
        body = bytearray()
        self._bare = False
        try:
            async with asyncio.timeout(limits.request if begun else limits.idle) as deadline:
                while True:
                    event = self._http.next_event()
                    if event is h11.NEED_DATA:
                        await self._continue()
                        self._http.receive_data(await self._reader.read(_CHUNK))
                        if not begun:
                            begun = True
                            deadline.reschedule(loop.time() + limits.request)
                    elif isinstance(event, h11.Request):
                        head = event
                        self._bare = event.method == b"HEAD"
                        self._examine(event)
                    elif isinstance(event, h11.Data):
                        body += event.data
                        if len(body) > self._most_body:
                            raise self._too_large()
                    elif isinstance(event, h11.EndOfMessage) and head is not None:
                        return self._made(head, bytes(body))
                    else:  # the client has closed its side
                        return None
        except TimeoutError:
            if not begun:
                return None
            raise HttpError(
                408, "Timeout", f"the request was not complete within {limits.request:g} s"
            ) from None

    async def _continue(self) -> None:
        """Let a client go on that waits for it (`Expect: 100-continue`)."""
        if self._http.they_are_waiting_for_100_continue:
            await self._write(h11.InformationalResponse(status_code=100, headers=[]))

    def _examine(self, head: h11.Request) -> None:
        """Judge what is known before the body comes. Raises `HttpError`."""
        limits = self._limits
        names = {name for name, _ in head.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            # Proxies differ on which counts, and so on where the next request begins: one could
            # be hidden in the body (RFC 9112, 6.1).
            raise HttpError(
                400, "TwoLengths", "Content-Length and Transfer-Encoding; expected one of them"
            )
        if not head.http_version.startswith(b"1."):
            version = head.http_version.decode("latin-1")
            raise HttpError(505, "BadVersion", f"HTTP/{version} is not spoken here; use HTTP/1.1")
        if len(head.target) > limits.target:
            raise self._too_long()
        if len(head.headers) > limits.headers:
            raise HttpError(
                431,
                "TooManyHeaders",
                f"{len(head.headers)} headers; expected at most {limits.headers}",
            )
        size = len(head.target) + sum(len(name) + len(value) + 4 for name, value in head.headers)
        if size > limits.head:  # what came in one piece, h11 does not measure
            raise self._too_much()
        self._most_body = self._body_limit(self._made(head, b""))
        for name, value in head.headers:
            if name == b"content-length" and int(value) > self._most_body:
                raise self._too_large()

    def _made(self, head: h11.Request, body: bytes) -> Request:
        headers: dict[str, str] = {}
        for name, value in head.headers:
            key, text = name.decode("latin-1"), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        return Request(
            head.method.decode("latin-1"), head.target.decode("latin-1"), self._peer, headers, body
        )

    def _judge(self, error: h11.RemoteProtocolError) -> HttpError:
        """Return the refusal of a request that is not HTTP, or too large."""
        if error.error_status_hint == 501:
            return HttpError(501, "NotImplemented", str(error))
        if error.error_status_hint != 431:
            return HttpError(400, "BadRequest", f"this is not an HTTP/1.1 request: {error}")
        if b"\n" not in self._http.trailing_data[0]:
            return self._too_long()
        return self._too_much()

    def _too_much(self) -> HttpError:
        return HttpError(
            431,
            "HeadersTooLarge",
            f"the request's line and headers are over {self._limits.head} bytes",
        )

    def _too_long(self) -> HttpError:
        return HttpError(
            414, "TargetTooLong", f"the request's target is over {self._limits.target} bytes"
        )

    def _too_large(self) -> HttpError:
        return HttpError(413, "BodyTooLarge", f"the request's body is over {self._most_body} bytes")

    async def _refuse(self, error: HttpError) -> None:
        """Answer a request that was not read to its end, and let the client read the answer."""
        await self._send(error.answer, close=True)
        if self._writer.can_write_eof():
            self._writer.write_eof()
        left = _LINGER_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.linger):
                while left > 0 and (data := await self._reader.read(_CHUNK)):
                    left -= len(data)

    async def _send(self, answer: Response, *, close: bool = False) -> None:
        """Send an answer."""
        headers = [("Date", _date()), *_ALWAYS, *answer.headers]
        body = answer.body
        if answer.status != 204:
            headers.append(("Content-Type", answer.type))
            if isinstance(body, bytes):
                headers.append(("Content-Length", str(len(body))))
        if close:
            headers.append(("Connection", "close"))
        start = h11.Response(
            status_code=answer.status, headers=headers, reason=_REASONS.get(answer.status, b"")
        )
        if self._bare:
            await self._write(start, h11.EndOfMessage())
        elif isinstance(body, bytes):
            await self._write(start, h11.Data(data=body), h11.EndOfMessage())
        else:
            await self._write(start)
            for part in body:
                await self._write(h11.Data(data=part))
                await asyncio.sleep(0)  # the next part may take a while to make
            await self._write(h11.EndOfMessage())

    async def _write(self, *events: _Sent) -> None:
        self._writer.write(b"".join(self._http.send(event) or b"" for event in events))
        self.unread = True
        async with asyncio.timeout(self._limits.send):
            await self._writer.drain()
        self.unread = False


def _date() -> str:
    """Return the date as HTTP has it; nothing here sets a locale, so the names are English."""
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
