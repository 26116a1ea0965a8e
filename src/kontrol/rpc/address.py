"""Hosts and ports as ZeroMQ endpoints.

Names are resolved here, by the event loop: ZeroMQ would do it in its I/O thread, and a slow name
server would hold up every socket of the process.
"""

import asyncio
import ipaddress
import socket


async def endpoint(host: str, port: int) -> str:
    """Return `tcp://address:port`, the host's first address in it; "*" and port 0 are wildcards.

    Raises `OSError` if the name cannot be resolved.
    """
    if host != "*":
        try:
            ipaddress.ip_address(host)
        except ValueError:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            host = str(found[0][4][0])
        if ":" in host:
            host = f"[{host}]"
    return f"tcp://{host}:{port or '*'}"
