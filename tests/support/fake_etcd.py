"""A gRPC server that answers as releases of etcd do which are not at hand.

Every read answers with `revision`; what a watch stream brings is written by the test, as an async
generator over the requests.
"""

from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

import grpc
from grpc import aio

from kontrol.store.etcd.messages import RANGE, STATUS, WATCH, Method, Wire

CLUSTER = 7
Script = Callable[[AsyncIterator[Wire]], AsyncIterator[Wire]]


class FakeEtcd:
    """One member, listening on loopback while entered."""

    def __init__(self, script: Script, revision: int) -> None:
        self.revision = revision
        self.endpoint = ""
        self._script = script
        self._server = aio.server()

    async def __aenter__(self) -> Self:
        async def read(request: Wire, context: object) -> Wire:
            return RANGE.response(header=self.header())

        async def status(request: Wire, context: object) -> Wire:
            return STATUS.response(header=self.header())

        async def watch(requests: AsyncIterator[Wire], context: object) -> AsyncIterator[Wire]:
            async for message in self._script(requests):
                yield message

        for method, serve, kind in (
            (RANGE, read, grpc.unary_unary_rpc_method_handler),
            (STATUS, status, grpc.unary_unary_rpc_method_handler),
            (WATCH, watch, grpc.stream_stream_rpc_method_handler),
        ):
            self._server.add_generic_rpc_handlers((_handler(method, serve, kind),))
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._server.stop(None)

    def header(self) -> dict[str, int]:
        return {"cluster_id": CLUSTER, "revision": self.revision}


def created(revision: int) -> Wire:
    return WATCH.response(header={"cluster_id": CLUSTER, "revision": revision}, created=True)


def progress(revision: int) -> Wire:
    return WATCH.response(header={"cluster_id": CLUSTER, "revision": revision}, watch_id=-1)


def changed(*revisions: int, fragment: bool = False) -> Wire:
    """Return a put of one key at each of `revisions`."""
    return WATCH.response(
        header={"cluster_id": CLUSTER, "revision": revisions[-1]},
        events=[{"kv": {"key": b"/k/a", "mod_revision": revision}} for revision in revisions],
        fragment=fragment,
    )


def canceled(reason: str, *, compacted: int = 0) -> Wire:
    """Return a refusal in the form that has both flags."""
    return WATCH.response(
        header={"cluster_id": CLUSTER, "revision": 1},
        created=True,
        canceled=True,
        cancel_reason=reason,
        compact_revision=compacted,
    )


def _handler(method: Method, serve: object, kind: Callable[..., Wire]) -> grpc.GenericRpcHandler:
    service, _, name = method.path.strip("/").rpartition("/")
    handler = kind(
        serve,
        request_deserializer=method.request.FromString,
        response_serializer=method.response.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(service, {name: handler})
