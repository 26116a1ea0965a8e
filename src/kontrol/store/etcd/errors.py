"""What a failure of gRPC or etcd means: whether the thing was done, and may be asked for again.

etcd tells its refusals apart by text more than by code: `UNAVAILABLE` is a refused connection
(nothing was done), a connection lost in mid-call (perhaps done), or a member without leader
(nothing was done). So the text decides first. The invariant: whatever is not *known* to have been
refused is `Ambiguous`. The texts are those of etcd's `api/v3rpc/rpctypes/error.go`, the same from
3.4 to 3.6, and of gRPC's core.

Not in the table on purpose: "request timed out", whose proposal may yet commit.
"""

from typing import Final

from grpc import StatusCode

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


class LoggedOut(Denied):
    """Our token is unknown to the member: expired, or the member restarted. Log in again."""


class AlreadyExists(StoreError):
    """The lease id is taken: by our own earlier attempt, ids being random."""


_BY_TEXT: Final[tuple[tuple[str, type[Exception]], ...]] = (
    # Never sent.
    ("failed to connect to all addresses", Unavailable),
    ("dns resolution failed", Unavailable),
    # Refused before it was proposed.
    ("no leader", Unavailable),
    ("not capable", Unavailable),
    ("not supported for learner", Unavailable),
    ("too many requests", Unavailable),
    ("raft proposal dropped", Unavailable),
    # Our token; the second when users or roles changed since it was given.
    ("invalid auth token", LoggedOut),
    ("revision of auth store is old", LoggedOut),
    ("user name is empty", LoggedOut),
    ("permission denied", Denied),
    ("authentication failed", Denied),
    # The alarm. etcd checks the quota before and after a write: docs/decisions/0022 and 0025.
    ("database space exceeded", NoSpace),
    # What was asked for.
    ("required revision has been compacted", Compacted),
    ("required revision is a future revision", Restored),
    ("requested lease not found", LeaseGone),
    ("lease already exists", AlreadyExists),
    ("request is too large", TooLarge),
    ("too many operations in txn", TooLarge),
    ("received message larger than max", TooLarge),
    ("duplicate key given in txn", ValueError),
)

# Refusals whose text is not above: the request was judged, and nothing was done.
_REFUSALS: Final = frozenset(
    {
        StatusCode.INVALID_ARGUMENT,
        StatusCode.NOT_FOUND,
        StatusCode.FAILED_PRECONDITION,
        StatusCode.OUT_OF_RANGE,
        StatusCode.UNIMPLEMENTED,
        StatusCode.PERMISSION_DENIED,
    }
)


def classify(endpoint: str, code: StatusCode, details: str) -> Exception:
    """Return the exception to raise for a call at `endpoint` that ended so.

    A `Compacted` carries revision 0: the text does not tell it.
    """
    text = f"etcd at {endpoint}: {details or code.name}"
    for part, kind in _BY_TEXT:
        if part in details.lower():
            return Compacted(0) if kind is Compacted else kind(text)
    if code is StatusCode.UNAUTHENTICATED:
        return LoggedOut(text)
    if code in _REFUSALS:
        return StoreError(text)
    return Ambiguous(f"{text} ({code.name})")
