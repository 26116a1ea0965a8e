"""A small HTTP client: one request, one connection, one deadline for all of it.

The standard library's clients bound each read, so that a server which sends a byte a second keeps
them for hours; and they read proxies from the environment, which must never see what is asked
here: tokens, and addresses that mean something on this machine alone. Here the whole exchange has
one deadline, no proxy is known, redirects are not followed, and an answer is whole or an error.
"""

import asyncio
import contextlib
import http.client
import io
import os
import re
import socket
import ssl
import threading
from collections.abc import Mapping
from email.message import Message
from typing import NamedTuple
from urllib.parse import urlsplit

MIB = 1 << 20
_HEAD = 65_536  # octets of status line and headers, as http.client has it
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)(?: [^\r\n]*)?\r\n")


class HTTPError(Exception):
    """There is no answer to use; the message says where and why."""


class Unreachable(HTTPError):
    """No connection came about."""


class Untrusted(HTTPError):
    """The server's certificate is not vouched for."""


class Silent(HTTPError):
    """There was a connection, and no whole answer on it in time."""


class Garbled(HTTPError):
    """What came is no HTTP, broke off, or is too long."""


class HTTPAnswer(NamedTuple):
    """A whole answer: its status, its headers (in any case), its body."""

    status: int
    headers: Message
    body: bytes


async def request(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    timeout: float = 5.0,
    limit: int = MIB,
) -> HTTPAnswer:
    """Ask, and return the answer, whatever its status.

    `timeout` is seconds for all of it, `limit` octets of the body. Raises `HTTPError`, of which
    the kinds are above.
    """
    parts = urlsplit(url)
    where = parts.netloc
    writer = None
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await _connect(url, tls)
            path = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
            lines = [f"{method} {path} HTTP/1.1", f"Host: {where}", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
            if method != "GET":
                lines.append("Content-Length: 0")
            writer.write("\r\n".join([*lines, "", ""]).encode("utf-8"))
            return await _answer(reader, limit)
    except TimeoutError:
        if writer is None:
            raise Unreachable(f"{where}: no connection within {timeout:g} s") from None
        raise Silent(f"{where}: connected, but no whole answer within {timeout:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise Untrusted(f"{where}: {error.verify_message}") from None
    except asyncio.IncompleteReadError:
        raise Garbled(f"{where}: the answer broke off") from None
    except (ValueError, asyncio.LimitOverrunError, http.client.HTTPException) as error:
        raise Garbled(f"{where}: {error}") from None
    except OSError as error:
        kind = Unreachable if writer is None else Garbled
        raise kind(f"{where}: {_reason(error)}") from None
    finally:
        if writer is not None:
            writer.transport.abort()


async def _connect(
    url: str, tls: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if tls else 80)
    problem: OSError = OSError(f"{host!r} has no address")
    for address in await _addresses(host, port):
        try:
            return await asyncio.open_connection(
                address, port, ssl=tls, server_hostname=host if tls else None, limit=_HEAD
            )
        except OSError as error:
            problem = error
    raise problem


async def _addresses(host: str, port: int) -> list[str]:
    """Look a name up in a daemon thread: a resolver that hangs must not hold up the exit."""
    if ":" in host or host.rpartition(".")[2].isdecimal():
        return [host]
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str] | OSError] = loop.create_future()

    def settle(result: list[str] | OSError) -> None:
        if not found.done():
            found.set_result(result)

    def run() -> None:
        result: list[str] | OSError
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            result = [str(info[4][0]) for info in infos]
        except OSError as error:
            result = error
        except UnicodeError as error:  # from the IDNA codec
            result = OSError(f"{host!r} is no DNS name: {error}")
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=run, name=f"look-up {host}", daemon=True).start()
    result = await found
    if isinstance(result, OSError):
        raise result
    return result


def _reason(error: OSError) -> str:
    """Say it in the system's words, or OpenSSL's: asyncio's name the address once more."""
    if isinstance(error, ssl.SSLError):
        return f"no TLS: {error.reason or error}".lower().replace("_", " ")
    known = error.errno is not None and error.errno > 0
    return (os.strerror(error.errno or 0) if known else error.strerror or str(error)).lower()


async def _answer(reader: asyncio.StreamReader, limit: int) -> HTTPAnswer:
    """Read one answer. Raises `ValueError`, or what the reader raises on an early end."""
    head = await reader.readuntil(b"\r\n\r\n")
    match = _STATUS.match(head)
    if match is None:
        raise ValueError("what came is not HTTP")
    headers = http.client.parse_headers(io.BytesIO(head[match.end() :]))
    status = int(match[1])
    if status in (204, 304):
        return HTTPAnswer(status, headers, b"")
    if headers.get("Transfer-Encoding", "").lower() == "chunked":
        return HTTPAnswer(status, headers, await _chunks(reader, limit))
    length = headers.get("Content-Length")
    if length is None:
        body = await _until_closed(reader, limit)
    else:
        body = await reader.readexactly(_bounded(length, 10, limit))
    return HTTPAnswer(status, headers, body)


async def _chunks(reader: asyncio.StreamReader, limit: int) -> bytes:
    body = bytearray()
    while True:
        line = await reader.readuntil(b"\r\n")
        size = _bounded(line.split(b";")[0].decode("latin-1").strip(), 16, limit - len(body))
        if not size:
            break
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # a trailer
    return bytes(body)


async def _until_closed(reader: asyncio.StreamReader, limit: int) -> bytes:
    body = bytearray()
    while chunk := await reader.read(_HEAD):
        body += chunk
        _check(len(body), limit)
    return bytes(body)


def _bounded(digits: str, base: int, limit: int) -> int:
    if not digits.isalnum():  # int() would take a sign, white space and underscores
        raise ValueError(f"its length is {digits!r}")
    return _check(int(digits, base), limit)


def _check(size: int, limit: int) -> int:
    if size > limit:
        raise ValueError("the answer is longer than anything that we asked for")
    return size
