"""One request to one address, and its answer: bounded in time and size, whoever answers.

A limit per read would not do, since bytes may come one by one for ever: a timer shuts the
connection down when the time is over. What comes back is not judged here, beyond being HTTP;
whatever keeps it from coming is `Silent`, with the reason in words.
"""

import contextlib
import http.client
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

from kontrol.cli.address import Endpoint
from kontrol.settings import variables as v
from kontrol_common.text import escaped

LIMIT = 64 * 1024 * 1024  # bytes of an answer: 10,000 pods with 6 KiB each
CONNECT = 2.0  # seconds for a look-up, and to connect to one address
PORTS = f"REST is on {v.HTTP_PORT.name}"

Address: TypeAlias = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]

# First bytes that are no HTTP: ZeroMQ's greeting (ZMTP 3.1, section 3.2), a TLS alert (RFC 8446).
_ZEROMQ = f"it speaks ZeroMQ: that is the port of {v.PORT.name}, and {PORTS}"
_TLS = "it speaks TLS: give its URL as https://..., and --ca for a private authority"
_TONGUES = {b"\xff": _ZEROMQ, b"\x15": _TLS}


class Silent(Exception):
    """No answer. `sent`: it may have been done all the same; `mended`: the text says the mend."""

    def __init__(self, text: str, *, sent: bool = False, mended: bool = False) -> None:
        super().__init__(text)
        self.sent = sent
        self.mended = mended or sent


class Late(Silent):
    """Something took the request, and did not answer in time."""


class Unable(Silent):
    """A master answered that it cannot do it now; another one may."""


class _OtherTongue(http.client.HTTPException):
    """What came back is of another protocol, which is known."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: `path` with its query, and a body or None."""

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Response(NamedTuple):
    """What came: `body` is at most one byte over `LIMIT`."""

    status: int
    kind: str
    location: str
    body: bytes


def look_up(endpoint: Endpoint) -> list[Address]:
    """Return the addresses of a host. Raises `Silent`, also when the resolver takes too long."""
    found: queue.SimpleQueue[list[Address] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            infos = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
            found.put([(info[0], info[4]) for info in infos])  # type: ignore[misc]  # all are IP
        except (OSError, UnicodeError) as error:  # the latter for a label that is too long
            found.put(error if isinstance(error, OSError) else OSError(str(error)))

    # A thread, since nothing else bounds the resolver; it ends by the resolver's own limits.
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = found.get(timeout=CONNECT)
    except queue.Empty:
        raise Silent(f"its name was not found within {CONNECT:g} s") from None
    if isinstance(answer, OSError):
        raise Silent(f"its name is not found: {_reason(answer)}")
    return answer


def exchange(
    endpoint: Endpoint, address: Address, request: Request, seconds: float, ca: Path | None
) -> Response:
    """Ask one address, and wait at most so long. `ca` vouches for it, else the system does.

    Raises `Silent`.
    """
    ends = time.monotonic() + seconds
    sent = False
    try:
        with _connect(endpoint, address, ends, ca) as sock, _cut(sock, ends) as late:
            sent = True
            try:
                response = _talk(endpoint, sock, request)
            except (OSError, http.client.HTTPException):
                if late.is_set():
                    raise TimeoutError from None
                raise
            if late.is_set():  # an answer without a length ends where it was cut
                raise TimeoutError
            return response
    except TimeoutError:
        if sent:
            raise Late(
                f"it was asked, and did not answer within {seconds:g} s", sent=True
            ) from None
        raise Silent(f"no connection within {min(seconds, CONNECT):g} s") from None
    except (OSError, http.client.HTTPException) as error:
        mended = isinstance(error, ssl.SSLError)
        raise Silent(_why(error, endpoint), sent=sent, mended=mended) from None


def _talk(endpoint: Endpoint, sock: socket.socket, request: Request) -> Response:
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port)
    connection.sock = sock
    connection.request(request.method, request.path, request.body, request.headers)
    if not isinstance(sock, ssl.SSLSocket):
        tongue = _TONGUES.get(sock.recv(1, socket.MSG_PEEK))
        if tongue:
            raise _OtherTongue(tongue)
    with connection.getresponse() as response:
        body = response.read(LIMIT + 1)
        if response.length and len(body) <= LIMIT:
            raise http.client.IncompleteRead(body, response.length)
        kind, location = (response.headers.get(name, "") for name in ("Content-Type", "Location"))
        return Response(response.status, kind, location, body)


@contextlib.contextmanager
def _connect(
    endpoint: Endpoint, address: Address, ends: float, ca: Path | None
) -> Iterator[socket.socket]:
    family, target = address
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(min(CONNECT, _left(ends)))
        sock.connect(target)
        sock.settimeout(_left(ends))
        if endpoint.scheme == "http":
            yield sock
            return
        with _context(endpoint, ca).wrap_socket(sock, server_hostname=endpoint.host) as wrapped:
            yield wrapped


def _context(endpoint: Endpoint, ca: Path | None) -> ssl.SSLContext:
    if endpoint.pin is None or ca is not None:
        return ssl.create_default_context(cafile=ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # it is this very certificate that must come
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(endpoint.pin)
    return context


@contextlib.contextmanager
def _cut(sock: socket.socket, ends: float) -> Iterator[threading.Event]:
    """Shut the connection down when the time is over, however slowly bytes still come in."""
    late = threading.Event()

    def end() -> None:
        late.set()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of the TCP beneath, if it is TLS

    timer = threading.Timer(_left(ends), end)
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
        timer.join()


def _left(ends: float) -> float:
    """Return the seconds that are left. Raises `TimeoutError`."""
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _why(error: OSError | http.client.HTTPException, endpoint: Endpoint) -> str:
    """Say why there is no answer, and the mend where there is one."""
    match error:
        case ssl.SSLCertVerificationError() if "expired" in error.verify_message:
            text = (
                f"its certificate is not accepted: {escaped(error.verify_message)}. Renew the "
                f"file of {v.TLS_CERT.name}, which the masters read again by themselves"
            )
        case ssl.SSLCertVerificationError():
            text = (
                f"its certificate is not accepted: {escaped(error.verify_message)}. --ca names the "
                "authority that signed it; the host must be one that the certificate names"
            )
        case ssl.SSLError() if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            text = f"it does not speak TLS: is it plain http://? {PORTS}"
        case ConnectionRefusedError():
            text = f"connection refused: nothing listens on port {endpoint.port}"
        case http.client.RemoteDisconnected() | ConnectionResetError():
            text = (
                "it closed the connection without an answer: it wants https://, or is no port of "
                f"HTTP ({PORTS})"
            )
        case http.client.IncompleteRead():
            text = f"the answer was cut off after {len(error.partial)} bytes"
        case http.client.HTTPException() if not isinstance(error, _OtherTongue):
            text = f"no proper HTTP came back: {type(error).__name__} {escaped(str(error)[:60])}"
        case OSError():
            text = _reason(error)
        case _:
            text = str(error)
    return text


def _reason(error: OSError) -> str:
    return escaped(error.strerror or str(error) or type(error).__name__).lower()
