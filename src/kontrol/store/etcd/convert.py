"""The store's values to etcd's messages and back. Pure. No other module knows the fields."""

from collections.abc import Sequence
from typing import Final

from kontrol.store.etcd.messages import CLASSES, Wire
from kontrol.store.protocol import (
    Compare,
    Delete,
    Event,
    Header,
    KeyValue,
    Op,
    Put,
    Range,
    RangeResult,
    TxnResult,
)

# The enumerations of rpc.proto.
_RESULTS: Final = {"=": 0, ">": 1, "<": 2, "!=": 3}
_TARGETS: Final = {
    "version": (0, "version"),
    "create": (1, "create_revision"),
    "mod": (2, "mod_revision"),
    "lease": (4, "lease"),
}
_DESCEND = 2
_DELETE = 1


def encode(key: str) -> bytes:
    """Return a key's bytes."""
    return key.encode("utf-8", "surrogateescape")


def span(key: str, *, prefix: bool) -> tuple[bytes, bytes]:
    """Return etcd's key and exclusive range end, empty for a single key."""
    start = encode(key)
    if not prefix:
        return start, b""
    if not start:
        return b"\0", b"\0"  # by etcd's convention, every key
    # UTF-8 has no byte of 0xff, so the last byte of a prefix can always be raised.
    return start, start[:-1] + bytes((start[-1] + 1,))


def range_request(request: Range) -> Wire:
    """Return the `RangeRequest` of `request`."""
    key, end = span(request.key, prefix=request.prefix)
    return CLASSES["RangeRequest"](
        key=key,
        range_end=end,
        limit=request.limit,
        revision=request.revision,
        keys_only=request.keys_only,
        sort_order=_DESCEND if request.descending else 0,
    )


def txn_request(compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op]) -> Wire:
    """Return the `TxnRequest` of the compares and both branches."""
    return CLASSES["TxnRequest"](
        compare=[_compare(compare) for compare in compares],
        success=[_request_op(op) for op in then],
        failure=[_request_op(op) for op in otherwise],
    )


def _compare(compare: Compare) -> Wire:
    target, field = _TARGETS[compare.target]
    return CLASSES["Compare"](
        key=encode(compare.key),
        result=_RESULTS[compare.op],
        target=target,
        **{field: compare.operand},
    )


def _request_op(op: Op) -> Wire:
    message = CLASSES["RequestOp"]
    match op:
        case Range():
            return message(request_range=range_request(op))
        case Put():
            put = {"key": encode(op.key), "value": op.value, "lease": op.lease}
            return message(request_put=put)
        case Delete():
            key, end = span(op.key, prefix=op.prefix)
            return message(request_delete_range={"key": key, "range_end": end})


def header(message: Wire) -> Header:
    """Return the header of an answer."""
    return Header(message.header.cluster_id, message.header.revision)


def key_value(message: Wire) -> KeyValue:
    """Return one `KeyValue`; the bytes of a key that is not UTF-8 are kept as surrogates."""
    return KeyValue(
        message.key.decode("utf-8", "surrogateescape"),
        message.value,
        message.create_revision,
        message.mod_revision,
        message.version,
        message.lease,
    )


def range_result(message: Wire, top: Header | None = None) -> RangeResult:
    """Return the result of a `RangeResponse`; in a transaction, `top` is the answer's header."""
    return RangeResult(
        top or header(message),
        tuple(key_value(kv) for kv in message.kvs),
        message.more,
        message.count,
    )


def txn_result(message: Wire) -> TxnResult:
    """Return the result of a `TxnResponse`."""
    top = header(message)
    return TxnResult(top, message.succeeded, tuple(_result(op, top) for op in message.responses))


def _result(message: Wire, top: Header) -> RangeResult | int | None:
    match message.WhichOneof("one"):
        case "response_range":
            return range_result(message.response_range, top)
        case "response_delete_range":
            deleted: int = message.response_delete_range.deleted
            return deleted
        case _:
            return None


def event(message: Wire) -> Event:
    """Return one `Event`."""
    return Event("delete" if message.type == _DELETE else "put", key_value(message.kv))


def watch_create(key: str, *, prefix: bool, start: int) -> Wire:
    """Return the `WatchRequest` that opens a watch. Large revisions may come in fragments."""
    first, end = span(key, prefix=prefix)
    create = {"key": first, "range_end": end, "start_revision": start, "fragment": True}
    return CLASSES["WatchRequest"](create_request=create)
