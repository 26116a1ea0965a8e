"""HTTP on the connections that `kontrol.listener` accepts, with TLS or without."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from kontrol.listener import Guest, Listener
from kontrol.web.connection import Connection, Respond
from kontrol.web.limits import Limits

if TYPE_CHECKING:  # OpenSSL is loaded only by a process that speaks TLS
    import ssl

log = logging.getLogger(__name__)

_HANDSHAKE = 10.0  # seconds for TLS's


def http_listener(
    respond: Respond, *, limits: Limits, tls: "Callable[[], ssl.SSLContext] | None" = None
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
        connection = Connection(reader, writer, guest.peer, respond=respond, limits=limits)
        guest.talk = connection
        await connection.run()

    return Listener(
        converse, connections=limits.connections, per_address=limits.connections_per_address
    )
