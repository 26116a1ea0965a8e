"""Addresses and sockets of the endpoints; decision 0013 gives the reasons for TCP's options."""

import math
import os
import resource
import socket
import sys

from kontrol.listener import BindError, listen
from kontrol.resolver import resolve
from kontrol.rpc.limits import Limits

_IDLE, _INTERVAL, _PROBES = 30, 10, 3
_ESTABLISHED = 1  # TCP_ESTABLISHED, the first byte of `struct tcp_info` of Linux


async def address(host: str, port: int) -> str:
    """Return the first address of `host`. Raises `OSError` if the name cannot be resolved."""
    return (await resolve(host, port))[0]


def endpoint(host: str, port: int) -> str:
    """Return `tcp://host:port`, as ZeroMQ writes it."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def why_unreachable(error: OSError) -> str:
    """Return in the system's words why no connection could be made."""
    if isinstance(error, ConnectionRefusedError):
        return "the connection was refused"
    if error.errno is not None:
        return f"no connection: {os.strerror(error.errno).lower()}"
    return "no connection could be made"


def affordable(wanted: int) -> int:
    """Return how many connections there may be: `wanted`, or fewer where descriptors are scarce.

    The rest of the process needs some too, and a server without any accepts a few in a second.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, limit - max(32, min(limit // 4, 1000))))


async def listening(host: str, port: int, limits: Limits) -> socket.socket:
    """Return a listening socket on `host` ("" or "*": all addresses, IPv6 too).

    Port 0 lets the system choose. Raises `BindError`.
    """
    try:
        where = "" if host in {"", "*"} else await address(host, port)
    except OSError as error:
        raise BindError(f"cannot listen on {host}: {error}") from error
    try:
        made = await listen(where, port, limits.backlog)
    except OSError as error:
        raise BindError.of(endpoint(where or "*", port), error.errno) from None
    made.setblocking(False)  # noqa: FBT003 - the standard library's signature
    keep_alive(made, limits.deaf)
    return made


def keep_alive(made: socket.socket, deaf: float) -> None:
    """Have the system end the connection of a peer that vanished. Accepted sockets inherit it.

    It does when nothing of what was sent is acknowledged for `deaf` seconds; what an idle
    connection sends to find out follows after twice that at the latest.
    """
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": min(_IDLE, math.ceil(2 * deaf)),
        "TCP_KEEPINTVL": min(_INTERVAL, math.ceil(deaf)),
        "TCP_KEEPCNT": _PROBES,
        "TCP_USER_TIMEOUT": math.ceil(1000 * deaf),
    }
    for option, value in options.items():
        if (number := getattr(socket, option, None)) is not None:  # macOS has not all of them
            made.setsockopt(socket.IPPROTO_TCP, number, value)


def given_up(accepted: socket.socket) -> bool:
    """Return whether the peer of a new connection has closed it already, if the system tells.

    One that gave up waiting to be accepted has sent its greeting before: reading would not tell.
    """
    if sys.platform != "linux":
        return False
    try:
        return accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED
    except OSError:
        return False  # a system that stands in for Linux may not tell
