"""Connecting to a member: its address, TLS, and the first answer.

A member that was stopped still has its connections accepted, by the kernel. So a connection counts
only once the member's first frame has come.
"""

import asyncio
import os
import socket
from functools import partial
from typing import TYPE_CHECKING

from kontrol.resolver import Resolve
from kontrol.store.etcd.connection import PING_TIMEOUT, Connection
from kontrol.store.protocol import Ambiguous, Unavailable

if TYPE_CHECKING:
    import ssl

_UNIX = "unix://"


def authority(endpoint: str) -> str:
    """Return the name of `endpoint` in requests."""
    return "localhost" if endpoint.startswith(_UNIX) else endpoint


async def dial(
    endpoint: str, context: "ssl.SSLContext | None", *, resolve: Resolve, timeout: float
) -> Connection:
    """Connect within `timeout` seconds; a name's addresses are tried in turn. Raises `Unavailable`.

    Nothing is sent that has an effect.
    """
    try:
        async with asyncio.timeout(timeout):
            connection = await _connect(endpoint, context, resolve, timeout)
            try:
                await connection.ready()
            except BaseException:
                connection.close()
                raise
    except TimeoutError:
        why = f"etcd at {endpoint}: no answer within {timeout:g} s"
    except OSError as error:  # OpenSSL's are such, too
        why = f"etcd at {endpoint}: {_reason(error)}"
    except (Unavailable, Ambiguous) as error:
        why = str(error)
    else:
        return connection
    raise Unavailable(f"cannot connect: {why}")


async def _connect(
    endpoint: str, context: "ssl.SSLContext | None", resolve: Resolve, timeout: float
) -> Connection:
    loop = asyncio.get_running_loop()
    make = partial(Connection, endpoint)
    if endpoint.startswith(_UNIX):
        name = None if context is None else "localhost"
        path = endpoint.removeprefix(_UNIX)
        _, connection = await loop.create_unix_connection(
            make, path, ssl=context, server_hostname=name
        )
        return connection
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    name = None if context is None else host
    end = loop.time() + timeout
    addresses = await resolve(host, int(port))
    error: OSError = OSError("its name has no address")
    for left in range(len(addresses), 0, -1):
        try:
            async with asyncio.timeout((end - loop.time()) / left):
                transport, connection = await loop.create_connection(
                    make, addresses[-left], int(port), ssl=context, server_hostname=name
                )
        except OSError as failure:  # TimeoutError is one
            error = failure
        else:
            _bound(transport.get_extra_info("socket"))
            return connection
    raise error


def _bound(sock: socket.socket) -> None:
    """Have the kernel end a connection whose peer confirms nothing, as pings do for streams."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        milliseconds = round(PING_TIMEOUT * 1000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def _reason(error: OSError) -> str:
    """Return what went wrong, without the place in OpenSSL's or asyncio's code."""
    if verdict := getattr(error, "verify_message", ""):
        return f"its certificate is not accepted: {verdict}"
    if hasattr(error, "library"):  # another error of OpenSSL's
        return f"TLS failed: {getattr(error, 'reason', None) or error}"
    if error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)
