"""etcd's messages, described by hand and built when this module is imported.

No protoc, no generated files: those tie themselves to the protobuf version that made them, and
carry thousands of lines for the thirty messages used here. Building takes about a millisecond.
Only the fields in use are described; protobuf passes over the others, and etcd over those that we
leave out, so the numbers below are all that must be right. They are those of etcd's
`api/etcdserverpb/rpc.proto` and `api/mvccpb/kv.proto`, the same since 3.4. Enumerations are plain
integers here, which is how they travel.

The pool is private, so that another library's description of the same messages cannot clash.
"""

from typing import Any, Final, TypeAlias

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# A message. Its class is made at run time, so that no type checker can know its fields.
Wire: TypeAlias = Any

_PACKAGE = "etcdserverpb"

# Message: {number: (type, name)}. `*` marks a repeated field, a capital letter a message, and `|` a
# member of the message's one oneof, where presence tells.
_MESSAGES: Final[dict[str, dict[int, str]]] = {
    "ResponseHeader": {1: "uint64 cluster_id", 2: "uint64 member_id", 3: "int64 revision"},
    "KeyValue": {
        1: "bytes key",
        2: "int64 create_revision",
        3: "int64 mod_revision",
        4: "int64 version",
        5: "bytes value",
        6: "int64 lease",
    },
    "Event": {1: "int32 type", 2: "KeyValue kv"},
    "RangeRequest": {
        1: "bytes key",
        2: "bytes range_end",
        3: "int64 limit",
        4: "int64 revision",
        5: "int32 sort_order",
        6: "int32 sort_target",
        8: "bool keys_only",
        9: "bool count_only",
    },
    "RangeResponse": {
        1: "ResponseHeader header",
        2: "*KeyValue kvs",
        3: "bool more",
        4: "int64 count",
    },
    "PutRequest": {1: "bytes key", 2: "bytes value", 3: "int64 lease"},
    "PutResponse": {1: "ResponseHeader header"},
    "DeleteRangeRequest": {1: "bytes key", 2: "bytes range_end"},
    "DeleteRangeResponse": {1: "ResponseHeader header", 2: "int64 deleted"},
    "RequestOp": {
        1: "|RangeRequest request_range",
        2: "|PutRequest request_put",
        3: "|DeleteRangeRequest request_delete_range",
    },
    "ResponseOp": {
        1: "|RangeResponse response_range",
        2: "|PutResponse response_put",
        3: "|DeleteRangeResponse response_delete_range",
    },
    "Compare": {
        1: "int32 result",
        2: "int32 target",
        3: "bytes key",
        4: "|int64 version",
        5: "|int64 create_revision",
        6: "|int64 mod_revision",
        8: "|int64 lease",
    },
    "TxnRequest": {1: "*Compare compare", 2: "*RequestOp success", 3: "*RequestOp failure"},
    "TxnResponse": {1: "ResponseHeader header", 2: "bool succeeded", 3: "*ResponseOp responses"},
    "LeaseGrantRequest": {1: "int64 TTL", 2: "int64 ID"},
    "LeaseGrantResponse": {1: "ResponseHeader header", 2: "int64 ID", 3: "int64 TTL"},
    "LeaseRevokeRequest": {1: "int64 ID"},
    "LeaseRevokeResponse": {1: "ResponseHeader header"},
    "LeaseKeepAliveRequest": {1: "int64 ID"},
    "LeaseKeepAliveResponse": {1: "ResponseHeader header", 2: "int64 ID", 3: "int64 TTL"},
    "LeaseTimeToLiveRequest": {1: "int64 ID"},
    "LeaseTimeToLiveResponse": {
        1: "ResponseHeader header",
        2: "int64 ID",
        3: "int64 TTL",
        4: "int64 grantedTTL",
    },
    "WatchCreateRequest": {
        1: "bytes key",
        2: "bytes range_end",
        3: "int64 start_revision",
        8: "bool fragment",
    },
    "WatchProgressRequest": {},
    "WatchRequest": {
        1: "|WatchCreateRequest create_request",
        3: "|WatchProgressRequest progress_request",
    },
    "WatchResponse": {
        1: "ResponseHeader header",
        2: "int64 watch_id",
        3: "bool created",
        4: "bool canceled",
        5: "int64 compact_revision",
        6: "string cancel_reason",
        7: "bool fragment",
        11: "*Event events",
    },
    "AuthenticateRequest": {1: "string name", 2: "string password"},
    "AuthenticateResponse": {1: "ResponseHeader header", 2: "string token"},
    "StatusRequest": {},
    "StatusResponse": {1: "ResponseHeader header", 2: "string version", 8: "*string errors"},
}

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {
    "bool": _Field.TYPE_BOOL,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "string": _Field.TYPE_STRING,
    "uint64": _Field.TYPE_UINT64,
}


def _build() -> dict[str, Wire]:
    file = descriptor_pb2.FileDescriptorProto(
        name="kontrol/etcd.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        if any(text.startswith("|") for text in fields.values()):
            message.oneof_decl.add(name="one")
        for number, text in fields.items():
            kind, field_name = text.lstrip("*|").split(" ")
            field = message.field.add(name=field_name, number=number)
            field.label = _Field.LABEL_REPEATED if text[0] == "*" else _Field.LABEL_OPTIONAL
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type = _Field.TYPE_MESSAGE
                field.type_name = f".{_PACKAGE}.{kind}"
            if text[0] == "|":
                field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


class Method:
    """A method of etcd's API: its path, and how its messages become bytes and come from them."""

    def __init__(self, service: str, name: str, messages: str) -> None:
        self.path = f"/{_PACKAGE}.{service}/{name}"
        self.request: Wire = CLASSES[f"{messages}Request"]
        self.response: Wire = CLASSES[f"{messages}Response"]


CLASSES: Final = _build()

RANGE = Method("KV", "Range", "Range")
TXN = Method("KV", "Txn", "Txn")
GRANT = Method("Lease", "LeaseGrant", "LeaseGrant")
REVOKE = Method("Lease", "LeaseRevoke", "LeaseRevoke")
TIME_TO_LIVE = Method("Lease", "LeaseTimeToLive", "LeaseTimeToLive")
KEEP_ALIVE = Method("Lease", "LeaseKeepAlive", "LeaseKeepAlive")
WATCH = Method("Watch", "Watch", "Watch")
AUTHENTICATE = Method("Auth", "Authenticate", "Authenticate")
STATUS = Method("Maintenance", "Status", "Status")
