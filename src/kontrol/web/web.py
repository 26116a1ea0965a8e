"""The endpoint as one thing to run, and its own numbers."""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Never

from kontrol.listener import Guest, Listener
from kontrol.metrics import Metric, render
from kontrol.web.access import Gate
from kontrol.web.app import App, Outages
from kontrol.web.connection import Connection
from kontrol.web.handlers import Checks, Handlers, Metrics
from kontrol.web.message import Limits
from kontrol.web.view import View

if TYPE_CHECKING:  # OpenSSL is loaded only by a process that speaks TLS
    import ssl

log = logging.getLogger(__name__)

_HANDSHAKE = 10.0  # seconds for TLS's


class WebError(Exception):
    """The endpoint cannot be started as it is configured; the message names the setting."""


class Web:
    """The REST endpoint. `bind`, then `serve`.

    `names` are the host names of this process (`hosts.names_of`); `ready` and `metrics` are called
    in turn for checks and for text; `view` is the master, None on an agent; `outages` are its
    errors that mean that etcd does not answer. `tls` is the certificate's file and its key's.
    Raises `WebError` for files that cannot be used.
    """

    def __init__(
        self,
        *,
        names: Iterable[str],
        ready: Sequence[Checks] = (),
        metrics: Sequence[Metrics] = (),
        view: View | None = None,
        token_file: Path | None = None,
        tls: tuple[Path, Path] | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        outages: Outages = (),
        full: Outages = (),
    ) -> None:
        try:
            self._gate = gate = Gate(token_file)
        except (OSError, ValueError) as error:
            raise WebError(f"KONTROL_TOKEN_FILE is {token_file}: {_reason(error)}") from None
        certificate = None
        if tls is not None:
            from kontrol.web.tls import Certificate  # loads OpenSSL

            try:
                certificate = Certificate(*tls)
            except OSError as error:
                raise WebError(f"KONTROL_TLS_CERT: {error}") from None
        checks = ready if view is None else (*ready, view.ready)
        handlers = Handlers(view=view, ready=checks, metrics=(*metrics, lambda: render(WEB, self)))
        self.app = App(
            handlers,
            names=frozenset(names),
            gate=gate,
            limits=limits,
            outages=outages,
            full=full,
        )
        self.listener = _http_listener(self.app, limits=limits, tls=certificate)

    async def bind(self, host: str, port: int) -> int:
        """Listen, and return the port; see `Listener.bind`. Raises `BindError`."""
        fix = "; set KONTROL_HTTP_PORT to another port, or to 0 for no REST"
        return await self.listener.bind(host, port, name="REST", fix=fix)

    def accept(self, token: str) -> None:
        """Accept one more token that may write, beside those of the token file."""
        self._gate.accept(token)

    async def serve(self) -> Never:
        """Serve until cancelled; then end the connections."""
        await self.listener.serve()


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _http_listener(
    app: App, *, limits: Limits, tls: "Callable[[], ssl.SSLContext] | None" = None
) -> Listener:
    """Return a listener whose connections speak HTTP.

    `tls` returns the context for the next connection, and is None for plain HTTP.
    """

    async def converse(accepted: socket.socket, guest: Guest) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=limits.head, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            context = None if tls is None else tls()
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                accepted,
                ssl=context,
                ssl_handshake_timeout=None if context is None else _HANDSHAKE,
            )
        except OSError as error:
            log.debug("%s: no TLS connection: %s", guest.peer, error)
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        connection = Connection(
            reader,
            writer,
            guest.peer,
            respond=app.respond,
            limits=limits,
            body_limit=app.body_limit,
        )
        guest.talk = connection
        await connection.run()

    return Listener(
        converse, connections=limits.connections, per_address=limits.connections_per_address
    )


WEB: tuple[Metric[Web], ...] = (
    Metric(
        "kontrol_http_requests_total",
        "counter",
        "Requests to the REST endpoint, by the status of their answer.",
        lambda web: [((str(code),), n) for code, n in sorted(web.app.answers.items())],
        ("status",),
    ),
    Metric(
        "kontrol_http_errors_total",
        "counter",
        "Requests and connections that failed with an unexpected error; the log has them.",
        lambda web: web.app.failures + web.listener.failed,
    ),
    Metric(
        "kontrol_http_connections",
        "gauge",
        "Connections to the REST endpoint.",
        lambda web: web.listener.connections,
    ),
    Metric(
        "kontrol_http_connections_accepted_total",
        "counter",
        "Connections to the REST endpoint that were accepted.",
        lambda web: web.listener.accepted,
    ),
    Metric(
        "kontrol_http_connections_evicted_total",
        "counter",
        "Connections that were evicted, while they waited for a request, to make room for others.",
        lambda web: web.listener.evicted,
    ),
)
