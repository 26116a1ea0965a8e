"""An HTTP client: one request, one connection, one deadline for all of it.

The standard library's clients bound each read, so that a server which sends a byte per second keeps
them for hours; and they take proxies from the environment, which must never see what is sent here:
tokens, and requests to addresses that mean something on this machine alone. Here the whole exchange
has one deadline, no proxy is known, redirects are not followed, and an answer is complete or an
error that says what kind it is.

`Exchange` is the protocol, by h11: it holds no socket and waits for nothing. `request` carries its
bytes on an event loop, `ask` without one: a command that asks a master does not load asyncio.
"""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import h11

from kontrol.resolver import resolve

if TYPE_CHECKING:
    import ssl

MIB = 1 << 20
_HEAD = 65_536  # bytes of status line and headers
_HEADERS = 100
_CHUNK = 65_536  # bytes read in one go
_SHOWN = 200  # characters of what a server sent, in an error
_BEGINS = b"HTTP/"  # what every answer begins with


class HTTPError(Exception):
    """There is no answer to use: `where` it was asked for, and `why`.

    `sent` says that the server may have done what was asked.
    """

    sent = False

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")
        self.why = why


class Unreachable(HTTPError):
    """There is no connection."""


class Refused(Unreachable):
    """Nothing listens at the port."""


class Untrusted(HTTPError):
    """The server's certificate is not accepted; `why` is what OpenSSL says of it."""


class TLSFailed(HTTPError):
    """TLS failed for another reason than the certificate, which `why` names as OpenSSL does."""


class TimedOut(HTTPError):
    """There was a connection, and no complete answer on it in time."""

    sent = True


class BadAnswer(HTTPError):
    """What came is not a complete HTTP answer that may be read."""

    sent = True


class NotHTTP(BadAnswer):
    """What came is another protocol; `start` is how it begins."""

    def __init__(self, where: str, start: bytes) -> None:
        super().__init__(where, f"this is not HTTP: {start!r}")
        self.start = start


class Closed(BadAnswer):
    """The server closed the connection without an answer."""


class CutOff(BadAnswer):
    """The connection ended before the answer did."""


class TooLong(BadAnswer):
    """The body is longer than what may be read."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask: `path` has the query; `body` is None if there is none."""

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Response(NamedTuple):
    """A complete answer: its status, its headers by their names in lower case, its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Exchange:
    """One request to `host`, a name or address with its port, and its answer. No I/O.

    `limit` is how many bytes the body may have. Raises `HTTPError` for a request that HTTP cannot
    carry.
    """

    def __init__(self, request: Request, host: str, limit: int = MIB) -> None:
        self._where = host
        self._limit = limit
        self._http = h11.Connection(h11.CLIENT, _HEAD)
        self._start = b""
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        headers = [("Host", host), ("Connection", "close"), *request.headers.items()]
        if request.body is not None or request.method != "GET":
            headers.append(("Content-Length", str(len(request.body or b""))))
        try:
            events = [
                h11.Request(method=request.method, target=request.path, headers=headers),
                h11.Data(data=request.body or b""),
                h11.EndOfMessage(),
            ]
        except (h11.LocalProtocolError, ValueError):  # its text may have a token in it
            raise HTTPError(host, "the request has characters that HTTP cannot carry") from None
        self.outgoing = b"".join(self._http.send(event) or b"" for event in events)
        """What to send."""

    def receive(self, data: bytes) -> Response | None:
        """Take what came, nothing for the end; return the answer once it is complete.

        Raises `BadAnswer`.
        """
        self._start = (self._start + data)[:_SHOWN]
        if not _BEGINS.startswith(self._start[: len(_BEGINS)]):
            raise NotHTTP(self._where, self._start)
        try:
            self._http.receive_data(data)
            response = self._next()
        except h11.RemoteProtocolError as error:
            if data:
                raise BadAnswer(self._where, str(error)[:_SHOWN]) from None
            response = None
        if response is None and not data:
            if not self._start:
                raise Closed(self._where, "the connection was closed without an answer")
            raise CutOff(self._where, f"the answer was cut off after {len(self._body)} bytes")
        return response

    def _next(self) -> Response | None:
        while (event := self._http.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Response):
                self._status, self._headers = event.status_code, self._examined(event)
            elif isinstance(event, h11.Data):
                self._body += event.data
                self._bound(len(self._body))
            elif isinstance(event, h11.EndOfMessage):
                return Response(self._status, self._headers, bytes(self._body))
            elif not isinstance(event, h11.InformationalResponse):
                return None  # the connection is closed
        return None

    def _examined(self, head: h11.Response) -> dict[str, str]:
        if len(head.headers) > _HEADERS:
            raise BadAnswer(self._where, f"{len(head.headers)} headers, more than {_HEADERS}")
        headers: dict[str, str] = {}
        for raw_name, raw_value in head.headers:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        self._bound(int(headers.get("content-length", 0)))
        return headers

    def _bound(self, size: int) -> None:
        if size > self._limit:
            raise TooLong(self._where, f"the answer is longer than {self._limit} bytes")


async def request(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    tls: "ssl.SSLContext | None" = None,
    timeout: float = 5.0,
    limit: int = MIB,
) -> Response:
    """Ask, and return the answer, whatever its status.

    Each address of the host is tried until there is a connection. `timeout` is seconds for all of
    it, `limit` bytes of the body. Raises `HTTPError`.
    """
    import asyncio

    parts = urlsplit(url)
    path = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    exchange = Exchange(Request(method, path, headers=headers or {}), parts.netloc, limit)
    try:
        host, port = parts.hostname or "", parts.port or (443 if tls else 80)
    except ValueError as error:
        raise HTTPError(parts.netloc, str(error)) from None
    writer = None
    try:
        async with asyncio.timeout(timeout):
            problem = OSError(f"{host!r} has no address")
            for address in await resolve(host, port):
                try:
                    reader, writer = await asyncio.open_connection(
                        address, port, ssl=tls, server_hostname=host if tls else None
                    )
                    break
                except OSError as error:
                    problem = error
            else:
                raise problem
            writer.write(exchange.outgoing)
            while (response := exchange.receive(await reader.read(_CHUNK))) is None:
                pass
            return response
    except OSError as error:
        sent = writer is not None
        raise _error_of(error, parts.netloc, timeout, sent=sent, tls=tls is not None) from None
    finally:
        if writer is not None:
            writer.transport.abort()


def ask(
    address: str,
    port: int,
    request: Request,
    *,
    host: str,
    tls: "ssl.SSLContext | None" = None,
    connect: float = 5.0,
    timeout: float = 5.0,
    limit: int = MIB,
) -> Response:
    """Ask the server at one address, without an event loop; return the answer.

    `host` is the name that the server must have, `timeout` seconds for all of it, of which
    `connect` for the connection, `limit` bytes of the body. Raises `HTTPError`.
    """
    ends = time.monotonic() + timeout
    where = authority(host, port, 443 if tls else 80)
    exchange = Exchange(request, where, limit)
    connect = min(connect, timeout)
    sent = False
    try:
        with socket.create_connection((address, port), connect) as tcp:
            tcp.settimeout(_left(ends))
            with tls.wrap_socket(tcp, server_hostname=host) if tls else tcp as stream:
                sent = True
                stream.settimeout(_left(ends))
                stream.sendall(exchange.outgoing)
                response = None
                while response is None:
                    stream.settimeout(_left(ends))
                    response = exchange.receive(stream.recv(_CHUNK))
                return response
    except OSError as error:
        seconds = timeout if sent else connect
        raise _error_of(error, where, seconds, sent=sent, tls=tls is not None) from None


def authority(host: str, port: int, default: int = 0) -> str:
    """Return what `Host` says of a name or address and its port, left out if it is `default`."""
    host = host.partition("%")[0]  # a zone means something on this machine alone (RFC 9110, 4.2)
    host = f"[{host}]" if ":" in host else host
    return host if port == default else f"{host}:{port}"


def _left(ends: float) -> float:
    """Return the seconds that are left. Raises `TimeoutError`."""
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _tls_error(error: OSError, where: str, *, sent: bool) -> HTTPError | None:
    """Return what an error of OpenSSL means; None if it is none."""
    import ssl

    if not isinstance(error, ssl.SSLError):
        return None
    failed: HTTPError = TLSFailed(
        where, f"no TLS: {error.reason or error}".lower().replace("_", " ")
    )
    if isinstance(error, ssl.SSLCertVerificationError):
        failed = Untrusted(where, error.verify_message)
    failed.sent = sent
    return failed


def _error_of(error: OSError, where: str, seconds: float, *, sent: bool, tls: bool) -> HTTPError:
    """Return what an error of the system or, with `tls`, of OpenSSL means."""
    if tls and (failed := _tls_error(error, where, sent=sent)) is not None:
        return failed
    if isinstance(error, TimeoutError) and error.errno is None:
        if sent:
            return TimedOut(where, f"connected, but no complete answer within {seconds:g} s")
        return Unreachable(where, f"no connection within {seconds:g} s")
    # In the system's words: those of asyncio name the address again.
    known = error.errno is not None and error.errno > 0
    why = (os.strerror(error.errno or 0) if known else error.strerror or str(error)).lower()
    if sent:
        closed = isinstance(error, ConnectionResetError | BrokenPipeError)
        return (Closed if closed else CutOff)(where, why)
    return (Refused if isinstance(error, ConnectionRefusedError) else Unreachable)(where, why)
