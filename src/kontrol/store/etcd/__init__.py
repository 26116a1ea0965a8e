"""A client of etcd v3 (3.4 and later): our own thin wrapper over `grpc.aio`.

`messages` describes etcd's messages at run time, `convert` turns values into them and back,
`errors` says what a failure means: pure. `stream` and `members` are the transport, with fail-over;
`leases`, `watch` and `store` make `kontrol.store.protocol.Store` of it. Why no published client
is used is in `docs/decisions/0020`.
"""

from kontrol.store.etcd import _fork  # noqa: F401 - before anything imports gRPC
from kontrol.store.etcd.config import EtcdConfig
from kontrol.store.etcd.store import EtcdStore

__all__ = ["EtcdConfig", "EtcdStore"]
