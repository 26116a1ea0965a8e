"""How to reach etcd, and what its failures mean.

`EtcdConfig` has the endpoints, the credentials and the timeouts. `classify` says of a failed call
whether it was done, and so whether it may be repeated.

etcd distinguishes its refusals by text more than by code: `UNAVAILABLE` is a refused connection
(nothing was done), a connection lost during a call (perhaps done), or a member without a leader
(nothing was done). So the text decides first. The texts are those of grpc-go and of etcd's
`api/v3rpc/rpctypes/error.go`, the same from 3.4 to 3.6.

Invariant: a call that is not *known* to have been refused is `Ambiguous`. So "request timed out" is
not in the table: its proposal may yet commit.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kontrol.store.etcd.grpc import Status
from kontrol.store.protocol import (
    Ambiguous,
    Compacted,
    Denied,
    LeaseGone,
    NoSpace,
    Restored,
    StoreError,
    TooLarge,
    Unavailable,
)

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """How to reach one etcd cluster. Raises `ValueError` for settings that cannot work.

    `endpoints` are `host:port` or `unix:///path`, the first one preferred. TLS is on with `tls`, or
    with a `ca`, `cert` or `key` (PEM files; without a `ca`, the system's authorities).

    All times are in seconds: `connect_timeout` bounds an attempt to connect, `attempt_timeout` an
    attempt of a call at one member while that answers quickly (see `Pace`), and `timeout` a call
    with all its attempts. All lease refreshes share `keepalive_streams`: a member that was not
    etcd's leader answered 3,459 a second on one stream, 8,936 on sixteen.
    """

    endpoints: tuple[str, ...]
    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    user: str = ""
    password_file: Path | None = None
    connect_timeout: float = 1.5
    attempt_timeout: float = 3.0
    timeout: float = 6.0
    keepalive_streams: int = 8

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise ValueError("there is no etcd endpoint: set at least one host:port")
        if (self.cert is None) != (self.key is None):
            raise ValueError(
                f"etcd's client certificate is {self.cert} and its key {self.key}: set both"
            )
        if bool(self.user) != (self.password_file is not None):
            raise ValueError(
                f"etcd's user is {self.user!r} and the password file {self.password_file}: set both"
            )

    def context(self) -> "ssl.SSLContext | None":
        """Read the certificates. None if TLS is off. Raises `OSError`, which names the file."""
        if not self.tls and self.ca is None and self.cert is None:
            return None
        import ssl  # OpenSSL takes 4 MB

        for path in (self.ca, self.cert, self.key):
            if path is not None:
                path.read_bytes()  # OpenSSL's errors name no file
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except ssl.SSLError as error:
            raise OSError(f"{self.ca}: {error.reason}; expected PEM certificates") from None
        # As for the Kubernetes API: docs/decisions/0132.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.set_alpn_protocols(["h2"])
        if self.cert is not None:
            try:
                context.load_cert_chain(self.cert, self.key, password=b"")
            except ssl.SSLError as error:
                raise OSError(
                    f"{self.cert} and {self.key}: {error.reason}; expected a certificate and its "
                    "key as PEM, without a passphrase"
                ) from None
        return context

    def password(self) -> str:
        """Read the password, without final newlines. Raises `OSError`."""
        assert self.password_file is not None, "no user, so no password"  # noqa: S101 - an invariant
        return self.password_file.read_text("utf-8").rstrip("\r\n")


class LoggedOut(Denied):
    """The member does not know our token: it expired, or the member restarted. Log in again."""


class AlreadyExists(StoreError):
    """The lease id exists: our own earlier attempt made it, as ids are random."""


_BY_TEXT: Final[tuple[tuple[str, type[Exception]], ...]] = (
    # Refused before it was proposed.
    ("no leader", Unavailable),
    ("not capable", Unavailable),
    ("not supported for learner", Unavailable),
    ("too many requests", Unavailable),
    ("raft proposal dropped", Unavailable),
    # Our token. The second text comes when users or roles changed since it was issued.
    ("invalid auth token", LoggedOut),
    ("revision of auth store is old", LoggedOut),
    ("user name is empty", LoggedOut),
    ("permission denied", Denied),
    ("authentication failed", Denied),
    # The alarm. etcd checks the quota before and after a write: docs/decisions/0022 and 0025.
    ("database space exceeded", NoSpace),
    # The request itself.
    ("required revision has been compacted", Compacted),
    ("required revision is a future revision", Restored),
    ("requested lease not found", LeaseGone),
    ("lease already exists", AlreadyExists),
    ("request is too large", TooLarge),
    ("too many operations in txn", TooLarge),
    ("received message larger than max", TooLarge),
    ("duplicate key given in txn", ValueError),
)

# Refusals with another text: etcd checked the request, and did nothing.
_REFUSALS: Final = frozenset(
    {
        Status.INVALID_ARGUMENT,
        Status.NOT_FOUND,
        Status.FAILED_PRECONDITION,
        Status.OUT_OF_RANGE,
        Status.UNIMPLEMENTED,
        Status.PERMISSION_DENIED,
    }
)


def classify(endpoint: str, code: Status, details: str) -> Exception:
    """Return the exception to raise for a call at `endpoint` that ended with `code`.

    The revision of a `Compacted` is 0: the text does not have it.
    """
    text = f"etcd at {endpoint}: {details or code.name}"
    for part, kind in _BY_TEXT:
        if part in details.lower():
            return Compacted(0) if kind is Compacted else kind(text)
    if code is Status.UNAUTHENTICATED:
        return LoggedOut(text)
    if code in _REFUSALS:
        return StoreError(text)
    return Ambiguous(f"{text} ({code.name})")
