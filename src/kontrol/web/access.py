"""How much a client may do: by its token, or by where it comes from.

Tokens are kept and compared as SHA-256 digests, in constant time, so that neither their bytes nor
their length can be guessed from how long a refusal takes. Without a token a client on loopback may
read what holds no secret: it is in the pod itself, or uses a port that Kubernetes forwards. A
request that a proxy passed on does not count as local, wherever the proxy is.
"""

import enum
import hashlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path

from kontrol.reloading import ReloadingFile
from kontrol.web.message import HttpError, Request

_TOKEN = re.compile(r"[0-9A-Za-z._~+/-]{16,512}=*\Z")  # RFC 6750's b64token, not short
_MOST = 4096  # bytes of a token file
_MAKE = "make one with: head -c 32 /dev/urandom | base64"
_CHALLENGE = (("WWW-Authenticate", 'Bearer realm="kontrol"'),)
_HERE = ("127.0.0.1", "::1")  # not all of loopback: a mesh's sidecar passes on as 127.0.0.6
_FORWARDED = ("forwarded", "x-forwarded-", "x-real-ip", "via")  # beginnings of headers


class Access(enum.IntEnum):
    """How much a client may do; each level includes those below it."""

    ANYONE = 0
    LOCAL = 1
    READER = 2
    WRITER = 3


@dataclass(frozen=True, slots=True)
class Tokens:
    """The digests of the tokens: of the one that may write, and of the one that may only read."""

    writer: bytes
    reader: bytes | None = None

    @classmethod
    def parse(cls, raw: bytes) -> "Tokens":
        """Read a token file: a token on its first line, and an optional one on the second.

        Raises `ValueError`, which describes the mistake and never contains a token.
        """
        if len(raw) > _MOST:
            raise ValueError(
                f"it is over {_MOST} bytes; expected one token, or two, on a line each"
            )
        lines = raw.decode("utf-8", "replace").strip("\r\n").splitlines() or [""]
        if len(lines) > 2:
            raise ValueError(f"it has {len(lines)} lines; expected one token, or two")
        for number, line in enumerate(lines, 1):
            if not _TOKEN.match(line):
                raise ValueError(
                    f"line {number} is not a token; expected 16 to 512 of the characters "
                    f"0-9 A-Z a-z . _ ~ + / - and = at its end ({_MAKE})"
                )
        writer, *reader = (_digest(line) for line in lines)
        if reader == [writer]:
            raise ValueError("both lines are the same token; expected a different one for reading")
        return cls(writer, reader[0] if reader else None)

    def access(self, token: str) -> Access | None:
        """Return what a token may do; None if it is not in the file."""
        digest = _digest(token)
        writes = hmac.compare_digest(digest, self.writer)
        reads = hmac.compare_digest(digest, self.reader or bytes(len(digest)))
        if writes:
            return Access.WRITER
        return Access.READER if reads else None


class Gate:
    """Judges clients. `path` is the token file, None if there is none; it may change.

    Raises `OSError` for a file that cannot be read, `ValueError` for one that holds no tokens.
    """

    def __init__(self, path: Path | None) -> None:
        self._tokens = (
            None
            if path is None
            else ReloadingFile(
                "KONTROL_TOKEN_FILE", [path], lambda: Tokens.parse(path.read_bytes())
            )
        )
        self._own: bytes | None = None

    def accept(self, token: str) -> None:
        """Accept one more token that may write: that of this user's commands."""
        self._own = _digest(token)

    def judge(self, request: Request) -> Access:
        """Return how much the client may do. Raises `HttpError` for an unknown token."""
        given = request.headers.get("authorization")
        if given is not None and self._own is not None:
            digest = _digest(given.removeprefix("Bearer "))
            if hmac.compare_digest(digest, self._own):
                return Access.WRITER
        if given is not None and self._tokens is not None:
            scheme, _, token = given.partition(" ")
            access = self._tokens.value.access(token.strip(" "))
            if scheme.lower() != "bearer" or access is None:
                raise HttpError(
                    401,
                    "BadToken",
                    "the token is not one of this process; send `Authorization: Bearer` and a "
                    "line of the file that its KONTROL_TOKEN_FILE names",
                    _CHALLENGE,
                )
            return access
        return Access.LOCAL if is_local(request) else Access.ANYONE

    def require(self, access: Access, least: Access) -> None:
        """Refuse a client that may not do as much as `least`. Raises `HttpError`."""
        if access >= least:
            return
        if access is Access.READER:
            raise HttpError(
                403,
                "ReadOnlyToken",
                "this token may only read; send the token on the first line of the token file",
            )
        if self._tokens is None:
            where = " (or send the request on loopback)" if least is Access.LOCAL else ""
            raise HttpError(
                403,
                "NoTokenFile",
                f"this requires a token, and the masters have no token file{where}: set "
                "KONTROL_TOKEN_FILE on the masters, and send its token as `Authorization: Bearer`",
            )
        raise HttpError(
            401,
            "TokenRequired",
            "send a token of the masters' KONTROL_TOKEN_FILE as `Authorization: Bearer`",
            _CHALLENGE,
        )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def is_local(request: Request) -> bool:
    """Return whether the client is in this pod, or uses a forwarded port of it."""
    return request.peer in _HERE and not any(
        name.startswith(_FORWARDED) for name in request.headers
    )
