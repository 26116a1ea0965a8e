"""The pure parts of the etcd client: messages, their conversion, and what failures mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.store.etcd import EtcdConfig
from kontrol.store.etcd.config import LoggedOut, classify
from kontrol.store.etcd.convert import event, range_request, span, txn_request, txn_result
from kontrol.store.etcd.grpc import Status
from kontrol.store.etcd.messages import CLASSES
from kontrol.store.protocol import (
    Ambiguous,
    Compacted,
    Compare,
    Delete,
    Denied,
    Event,
    Header,
    KeyValue,
    LeaseGone,
    NoSpace,
    Put,
    Range,
    RangeResult,
    Restored,
    StoreError,
    TooLarge,
    Unavailable,
)

KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(KEYS, KEYS)
def test_a_prefix_spans_the_keys_that_start_with_it(prefix: str, key: str) -> None:
    start, end = span(prefix, prefix=True)
    for candidate in (key, prefix + key, prefix):
        inside = start <= candidate.encode() < end
        assert inside == candidate.startswith(prefix)


def test_the_empty_prefix_spans_everything() -> None:
    assert span("", prefix=True) == (b"\0", b"\0")
    assert span("a", prefix=False) == (b"a", b"")


def test_requests_have_the_bytes_that_etcd_documents() -> None:
    # By hand after rpc.proto: tag = number << 3 | wire type; varint 0, length-delimited 2.
    last = Range("k", prefix=True, limit=5, descending=True)
    assert range_request(last).SerializeToString() == b"\x0a\x01k\x12\x01l\x18\x05\x28\x02"
    request = txn_request(
        [Compare("k", "create", "=", 0), Compare("k", "lease", "!=", 7)],
        [Put("k", b"v", 9)],
        [Delete("k"), Range("k", keys_only=True)],
    )
    assert request.SerializeToString() == (
        b"\x0a\x07\x10\x01\x1a\x01k\x28\x00"
        b"\x0a\x09\x08\x03\x10\x04\x1a\x01k\x40\x07"
        b"\x12\x0a\x12\x08\x0a\x01k\x12\x01v\x18\x09"
        b"\x1a\x05\x1a\x03\x0a\x01k"
        b"\x1a\x07\x0a\x05\x0a\x01k\x40\x01"
    )


@given(st.binary(min_size=1, max_size=8))
def test_any_key_of_another_client_comes_and_goes(key: bytes) -> None:
    read = event(CLASSES["Event"](kv={"key": key})).kv.key
    assert range_request(Range(read)).key == key


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1), st.binary(max_size=20), KEYS)
def test_answers_come_back_as_values(cluster: int, revision: int, value: bytes, key: str) -> None:
    kv = {
        "key": key.encode(),
        "value": value,
        "create_revision": 1,
        "mod_revision": revision,
        "version": 2,
        "lease": 3,
    }
    message = CLASSES["TxnResponse"](
        header={"cluster_id": cluster, "revision": revision},
        succeeded=True,
        responses=[
            {"response_range": {"kvs": [kv], "more": True, "count": 9}},
            {"response_put": {}},
            {"response_delete_range": {"deleted": 4}},
        ],
    )
    header = Header(cluster, revision)
    wanted = KeyValue(key, value, 1, revision, 2, 3)
    result = txn_result(CLASSES["TxnResponse"].FromString(message.SerializeToString()))
    assert result.header == header
    assert result.succeeded
    assert result.results == (RangeResult(header, (wanted,), more=True, count=9), None, 4)
    assert event(CLASSES["Event"](type=1, kv=kv)) == Event("delete", wanted)
    assert event(CLASSES["Event"](kv=kv)) == Event("put", wanted)


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        ("UNAVAILABLE", "etcdserver: no leader", Unavailable),
        ("UNAVAILABLE", "etcdserver: rpc not supported for learner", Unavailable),
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", Unavailable),
        ("UNKNOWN", "raft proposal dropped", Unavailable),
        ("UNAVAILABLE", "Socket closed", Ambiguous),
        ("UNAVAILABLE", "recvmsg:Connection reset by peer", Ambiguous),
        ("UNAVAILABLE", "etcdserver: request timed out", Ambiguous),
        ("UNAVAILABLE", "etcdserver: server stopped", Ambiguous),
        ("UNAVAILABLE", "etcdserver: leader changed", Ambiguous),
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", NoSpace),
        ("UNKNOWN", "context deadline exceeded", Ambiguous),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", Ambiguous),
        ("INTERNAL", "", Ambiguous),
        ("CANCELLED", "", Ambiguous),
        ("UNAUTHENTICATED", "etcdserver: invalid auth token", LoggedOut),
        ("UNAUTHENTICATED", "something new", LoggedOut),
        ("INVALID_ARGUMENT", "etcdserver: revision of auth store is old", LoggedOut),
        ("INVALID_ARGUMENT", "etcdserver: user name is empty", LoggedOut),
        ("PERMISSION_DENIED", "etcdserver: permission denied", Denied),
        (
            "INVALID_ARGUMENT",
            "etcdserver: authentication failed, invalid user ID or password",
            Denied,
        ),
        ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted", Compacted),
        ("OUT_OF_RANGE", "etcdserver: mvcc: required revision is a future revision", Restored),
        ("NOT_FOUND", "etcdserver: requested lease not found", LeaseGone),
        ("INVALID_ARGUMENT", "etcdserver: request is too large", TooLarge),
        ("INVALID_ARGUMENT", "etcdserver: too many operations in txn request", TooLarge),
        ("RESOURCE_EXHAUSTED", "grpc: received message larger than max (3 vs. 2)", TooLarge),
        ("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request", ValueError),
        ("FAILED_PRECONDITION", "something new", StoreError),
        ("UNIMPLEMENTED", "unknown service", StoreError),
    ],
)
def test_what_a_failure_means(code: str, details: str, kind: type[Exception]) -> None:
    error = classify("host:2379", Status[code], details)
    assert type(error) is kind
    if kind is not Compacted:
        assert "host:2379" in str(error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"endpoints": ()}, "there is no etcd endpoint"),
        ({"endpoints": ("a:1",), "cert": "c.pem"}, "set both"),
        ({"endpoints": ("a:1",), "user": "root"}, "set both"),
    ],
)
def test_a_configuration_that_cannot_work(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EtcdConfig(**arguments)  # type: ignore[arg-type] # what a caller may get wrong
