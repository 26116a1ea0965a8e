"""One request to one address of a master, and why there is no answer, in words for the operator.

The client itself is `kontrol.httpclient`. The answer is not judged here, beyond being HTTP;
whatever keeps it from coming is `NoAnswer`, with the reason.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from kontrol import httpclient as http
from kontrol.cli.address import Endpoint
from kontrol.resolver import look_up
from kontrol.settings import variables as v
from kontrol_common.text import escaped

if TYPE_CHECKING:
    import ssl

LIMIT = 64 * 1024 * 1024  # bytes of an answer: 10,000 pods with 6 KiB each
CONNECT = 2.0  # seconds for a look-up, and to connect to one address
PORTS = f"REST is on {v.HTTP_PORT.name}"

# First bytes that are not HTTP: ZeroMQ's greeting (ZMTP 3.1, section 3.2), a TLS alert (RFC 8446).
_PROTOCOLS = {
    b"\xff": f"it speaks ZeroMQ: that is the port of {v.PORT.name}, and {PORTS}",
    b"\x15": "it speaks TLS: give its URL as https://..., and --ca for a private authority",
}


class NoAnswer(Exception):
    """No answer. `sent`: it may have been done all the same; `explained`: the text has the fix."""

    def __init__(self, text: str, *, sent: bool = False, explained: bool = False) -> None:
        super().__init__(text)
        self.sent = sent
        self.explained = explained or sent


class Late(NoAnswer):
    """A server accepted the request, and did not answer in time."""


class Unable(NoAnswer):
    """A master answered that it cannot do this now: another one may."""


def addresses(endpoint: Endpoint) -> list[str]:
    """Return the addresses of a host. Raises `NoAnswer`, also when the resolver takes too long."""
    try:
        return look_up(endpoint.host, endpoint.port, CONNECT)
    except TimeoutError:
        raise NoAnswer(f"its name was not found within {CONNECT:g} s") from None
    except OSError as error:
        raise NoAnswer(f"its name is not found: {_reason(error)}") from None


def exchange(
    endpoint: Endpoint, address: str, request: http.Request, seconds: float, ca: Path | None
) -> http.Response:
    """Ask one address, and wait at most so long. `ca` vouches for it, else the system does.

    Raises `NoAnswer`, and `TooLong` of `kontrol.httpclient` for an answer over `LIMIT`.
    """
    try:
        return http.ask(
            address,
            endpoint.port,
            request,
            host=endpoint.host,
            tls=None if endpoint.scheme == "http" else _context(endpoint, ca),
            connect=CONNECT,
            timeout=seconds,
            limit=LIMIT,
        )
    except http.TooLong:
        raise
    except http.TimedOut:
        raise Late(f"it was asked, and did not answer within {seconds:g} s", sent=True) from None
    except http.HTTPError as error:
        explained = isinstance(error, http.Untrusted | http.TLSFailed)
        raise NoAnswer(_why(error, endpoint), sent=error.sent, explained=explained) from None


def _context(endpoint: Endpoint, ca: Path | None) -> "ssl.SSLContext":
    """Return what judges the server's certificate. Raises `NoAnswer` for an unusable file."""
    import ssl  # and with it OpenSSL, only where it is used

    try:
        if endpoint.pin is None or ca is not None:
            return ssl.create_default_context(cafile=ca)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # it is this very certificate that must come
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(endpoint.pin)
    except OSError as error:
        raise NoAnswer(_reason(error), explained=isinstance(error, ssl.SSLError)) from None
    return context


def _why(error: http.HTTPError, endpoint: Endpoint) -> str:
    """Say why there is no answer, and the fix where there is one."""
    why = text = escaped(error.why)
    match error:
        case http.Untrusted() if "expired" in why:
            text = (
                f"its certificate is not accepted: {why}. Renew the file of {v.TLS_CERT.name}, "
                "which the masters read again by themselves"
            )
        case http.Untrusted():
            text = (
                f"its certificate is not accepted: {why}. --ca names the authority that signed it; "
                "the host must be one that the certificate names"
            )
        case http.TLSFailed() if "wrong version" in why or "record layer" in why:
            text = f"it does not speak TLS: is it plain http://? {PORTS}"
        case http.Refused():
            text = f"connection refused: nothing listens on port {endpoint.port}"
        case http.Closed():
            text = (
                "it closed the connection without an answer: it wants https://, or is no port of "
                f"HTTP ({PORTS})"
            )
        case http.NotHTTP() if error.start[:1] in _PROTOCOLS:
            text = _PROTOCOLS[error.start[:1]]
        case http.BadAnswer() if not isinstance(error, http.CutOff):
            text = f"no proper HTTP came back: {why}"
    return text


def _reason(error: OSError) -> str:
    return escaped(error.strerror or str(error) or type(error).__name__).lower()
