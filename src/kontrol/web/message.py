"""Requests, answers and their limits, as values. Nothing here knows sockets, tokens or routes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kontrol.ensemble.canonical import canonical

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One complete request. Names of headers are in lower case; repeated ones are joined by commas.

    `peer` is the client's address. `target` is as it came.
    """

    method: str
    target: str
    peer: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """One answer. A body in parts is made while it is sent, so that it is never held completely."""

    status: int
    body: bytes | Iterable[bytes] = b""
    type: str = "application/json"
    headers: Headers = ()


class HttpError(Exception):
    """A request that is refused: status, a name for programs, a message with the fix."""

    def __init__(self, status: int, name: str, message: str, headers: Headers = ()) -> None:
        super().__init__(f"{status} {name}: {message}")
        self.status = status
        self.name = name
        self.message = message
        self.headers = headers

    @property
    def answer(self) -> Response:
        """The answer to send."""
        body = {"error": {"name": self.name, "message": self.message}}
        return Response(self.status, canonical(body) + b"\n", headers=self.headers)


def document(value: object, status: int = 200) -> Response:
    """Return an answer that is one JSON document."""
    return Response(status, canonical(value) + b"\n")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what one client, and all of them together, can make the endpoint hold or do.

    The string below each field is its line in the published table of limits.
    """

    connections: int = 128
    """Connections. One more evicts the one that has been waiting for a request the longest."""

    connections_per_address: int = 32
    """Connections from one address; one more evicts that address's oldest that waits."""

    head: int = 8192
    """Bytes of a request's line and headers; more is 431, or 414 if the line itself is longer."""

    target: int = 2048
    """Bytes of a request's target; more is 414."""

    headers: int = 64
    """Headers of a request; more is 431."""

    body: int = 4096
    """Bytes of a request's body; more is 413."""

    large_body: int = 192 * 1024
    """Bytes of the body of `/v1/set` and `/v1/unset`, with a token that may write; more is 413."""

    request: float = 10.0
    """Seconds from a request's first byte to its last; over them is 408."""

    idle: float = 30.0
    """Seconds for which a connection may wait for a request to begin."""

    handling: float = 15.0
    """Seconds in which a request must be answered; over them is 503."""

    send: float = 10.0
    """Seconds for a client to take 64 KiB of an answer; over them the connection is closed."""

    linger: float = 0.5
    """Seconds in which a client that was refused during its request may read why."""

    rate: float = 50.0
    """Requests per second from one address without a token, but for health; more is 429."""

    burst: int = 200
    """Requests that an address which was quiet may send at the same time."""
