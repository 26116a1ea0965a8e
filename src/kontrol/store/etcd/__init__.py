"""A client of etcd v3 (3.4 and later): our own thin wrapper over `grpc.aio`.

`messages` describes etcd's messages at run time, and `convert` translates values to and from them.
`config` says where etcd is, and what its failures mean. `stream` and `members` are the transport,
with fail-over; `leases`, `watch` and `store` implement `kontrol.store.protocol.Store` on it.
`docs/decisions/0020` says why this is not a published client.
"""

from kontrol.store.etcd import _fork  # noqa: F401 - before anything imports gRPC
from kontrol.store.etcd.config import EtcdConfig
from kontrol.store.etcd.store import EtcdStore

__all__ = ["EtcdConfig", "EtcdStore"]
