"""A client of etcd v3 (3.4 and later), gRPC and HTTP/2 included.

`messages` describes etcd's messages at run time, and `convert` translates values to and from them.
`config` says where etcd is, and what its failures mean. `hpack`, `http2` and `grpc` are the
protocols, without I/O; `dial`, `connection` and `stream` carry them; `members` chooses where a call
goes. `leases`, `watch` and `store` implement `kontrol.store.protocol.Store` on that.
`docs/decisions/0020` says why this is not a published client, and `0174` why not gRPC's library.
"""

from kontrol.store.etcd.config import EtcdConfig
from kontrol.store.etcd.store import EtcdStore

__all__ = ["EtcdConfig", "EtcdStore"]
