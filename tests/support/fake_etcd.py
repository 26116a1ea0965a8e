"""A gRPC server that answers as releases of etcd do which are not at hand.

Every read answers with `revision`; what a watch stream brings is written by the test, as an async
generator over the requests.
"""

from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from tests.support.h2_server import H2Server, Served

from kontrol.store.etcd.messages import RANGE, STATUS, WATCH, Wire

CLUSTER = 7
Script = Callable[[AsyncIterator[Wire]], AsyncIterator[Wire]]


class FakeEtcd:
    """One member, listening on loopback while entered."""

    def __init__(self, script: Script, revision: int) -> None:
        self.revision = revision
        self.endpoint = ""
        self._script = script
        self._server = H2Server(self._serve)

    async def __aenter__(self) -> Self:
        await self._server.__aenter__()
        self.endpoint = self._server.endpoint
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._server.__aexit__(kind, error, trace)

    async def _serve(self, served: Served) -> None:
        async def requests() -> AsyncIterator[Wire]:
            while (message := await served.receive()) is not None:
                yield WATCH.request.FromString(message)

        if served.method == "Watch":
            async for message in self._script(requests()):
                await served.send(message.SerializeToString())
        else:
            method = {"Range": RANGE, "Status": STATUS}[served.method]
            await served.receive()
            await served.send(method.response(header=self.header()).SerializeToString())
        served.end()

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
