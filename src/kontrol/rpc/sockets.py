"""The two kinds of ZeroMQ sockets that the endpoints use, with their options.

docs/decisions/0013 gives the reasons for the options. Names are resolved before ZeroMQ gets them:
it would do so in its I/O thread, and a slow name server would hold up every socket.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from kontrol.listener import BindError, plain_address
from kontrol.resolver import resolve
from kontrol.rpc.limits import Limits
from kontrol.rpc.security.keys import Pair

_PROBE = 1.0  # seconds

Context = zmq.Context[zmq.Socket[bytes]]
"""A ZeroMQ context: an I/O thread, and the sockets that share it."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a caller proves, its own `pair`, and what it wants proved: the `server`'s public key."""

    pair: Pair
    server: str


async def endpoint(host: str, port: int) -> str:
    """Return `tcp://address:port`, the host's first address in it; "*" and port 0 are wildcards.

    Raises `OSError` if the name cannot be resolved.
    """
    if host != "*":
        host = (await resolve(host, port))[0]
        if ":" in host:
            host = f"[{host}]"
    return f"tcp://{host}:{port or '*'}"


async def why_unreachable(where: str) -> str:
    """Return in the system's words why no connection to `tcp://address:port` can be made.

    ZeroMQ reports every failure by the same event, without the reason. So it is tried once more.
    """
    host, _, port = where.removeprefix("tcp://").rpartition(":")
    address = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # noqa: FBT003  # it takes no keywords
        try:
            async with asyncio.timeout(_PROBE):
                await asyncio.get_running_loop().sock_connect(probe, (address, int(port)))
        except OSError as error:
            if isinstance(error, ConnectionRefusedError):
                return "the connection was refused"
            if error.errno is not None:  # not that of our own timeout
                return f"no connection: {os.strerror(error.errno).lower()}"
    return "no connection could be made"


async def router(
    context: Context,
    host: str,
    port: int,
    limits: Limits,
    prepare: Callable[["zmq.Socket[bytes]"], None] = lambda _: None,
) -> tuple["zmq.Socket[bytes]", int]:
    """Return a listening router and its port; `prepare` sets options of its own before.

    Raises `BindError`.
    """
    try:
        where = await endpoint(host or "*", port)
    except OSError as error:
        raise BindError(f"cannot listen on {host}: {error}") from error
    listening = context.socket(zmq.ROUTER)
    _set(
        listening,
        limits,
        {
            zmq.IPV6: int("*:" in where or "[" in where),
            zmq.ROUTER_MANDATORY: 1,
            zmq.BACKLOG: limits.backlog,
            zmq.TCP_MAXRT: int(limits.deaf * 1000),
            zmq.TCP_KEEPALIVE_IDLE: 30,
            zmq.TCP_KEEPALIVE_INTVL: 10,
            zmq.TCP_KEEPALIVE_CNT: 3,
        },
    )
    prepare(listening)
    try:
        listening.bind(where)
    except zmq.ZMQError as error:
        listening.close(linger=0)
        raise BindError.of(where, error.errno) from None
    return listening, int(listening.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])


def dealer(
    context: Context, where: str, limits: Limits, credentials: Credentials | None = None
) -> "zmq.Socket[bytes]":
    """Return a dealer that is to be connected to the endpoint `where`."""
    calling = context.socket(zmq.DEALER)
    _set(calling, limits, {zmq.IPV6: int("[" in where)})
    if credentials is not None:
        calling.setsockopt(zmq.CURVE_PUBLICKEY, credentials.pair.public.encode("ascii"))
        calling.setsockopt(zmq.CURVE_SECRETKEY, credentials.pair.secret.encode("ascii"))
        calling.setsockopt(zmq.CURVE_SERVERKEY, credentials.server.encode("ascii"))
    return calling


def monitor(context: Context, watched: "zmq.Socket[bytes]", events: int) -> "zmq.Socket[bytes]":
    """Return a socket on which ZeroMQ reports events of `watched`, without a bound on their number.

    ZeroMQ's I/O thread would wait where there is one, holding a lock that the event loop needs to
    bind, or to stop watching: clients that connect fast enough could halt the process.
    """
    where = f"inproc://kontrol.monitor.{id(watched)}"
    watched.monitor(where, events)
    reports = context.socket(zmq.PAIR)
    reports.setsockopt(zmq.RCVHWM, 0)
    reports.setsockopt(zmq.LINGER, 0)
    reports.connect(where)
    return reports


def peer_name(identity: bytes, frame: zmq.Frame) -> str:
    """Return the name of the connection that a message came from: its IP address and identity."""
    return f"{plain_address(str(frame.get('Peer-Address')))}#{identity.hex()}"


def _set(made: "zmq.Socket[bytes]", limits: Limits, options: dict[int, int]) -> None:
    common = {
        zmq.MAXMSGSIZE: limits.readable,
        zmq.SNDHWM: limits.unread,
        zmq.RCVHWM: limits.unhandled,
        zmq.HANDSHAKE_IVL: int(limits.handshake * 1000),
        zmq.TCP_KEEPALIVE: 1,
        zmq.LINGER: 0,
    }
    for option, value in (common | options).items():
        made.setsockopt(option, value)
