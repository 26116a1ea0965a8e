"""Where etcd is, how to prove who we are, and how long to wait."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Pems: TypeAlias = tuple[bytes | None, bytes | None, bytes | None]


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """How to reach one etcd cluster. Raises `ValueError` for what cannot work.

    `endpoints` are `host:port` or `unix:///path`, the first preferred. TLS is on with `tls`, or
    with a `ca`, `cert` or `key` (PEM files; without a `ca` the roots that gRPC carries). All
    durations are seconds:
    `connect_timeout` bounds a connection attempt, `attempt_timeout` one try of a call at one
    member while that answers quickly (see `Pace`), `timeout` a call with all its tries.
    `keepalive_streams` carry all lease refreshes: a member that is not etcd's leader answered 3,459
    a second on one stream, 8,936 on sixteen.
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
            raise ValueError("no etcd endpoint: give at least one host:port")
        if (self.cert is None) != (self.key is None):
            raise ValueError(
                f"etcd's client certificate is {self.cert} and its key {self.key}: give both"
            )
        if bool(self.user) != (self.password_file is not None):
            raise ValueError(
                f"etcd's user is {self.user!r} and the password file {self.password_file}: "
                "give both"
            )

    def pems(self) -> Pems | None:
        """Read the CA, the key and the certificate; None if TLS is off. Raises `OSError`."""
        if not self.tls and self.ca is None and self.cert is None:
            return None
        ca, key, cert = (
            path.read_bytes() if path else None for path in (self.ca, self.key, self.cert)
        )
        return ca, key, cert

    def password(self) -> str:
        """Read the password, less a final newline. Raises `OSError`."""
        assert self.password_file is not None, "no user, so no password"  # noqa: S101 - an invariant
        return self.password_file.read_text("utf-8").rstrip("\r\n")
