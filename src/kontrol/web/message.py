"""Requests and answers as values. Nothing here knows sockets, tokens or routes."""

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
