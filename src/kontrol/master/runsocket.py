"""The socket of a run: how `kontrol publish`, within the callback, reaches the leader that runs it.

A unix socket in the run's folder (mode 0700), which `$RUN_SOCKET` names: a process that can open it
is of the master's user, and it is gone when the run has ended. So no token is needed, and none can
leak.
A connection has one line of JSON, `{"publish": KEY}` or `{"remove": KEY}`, then the document up to
the end of what is sent. One line answers: `{"version": N}`, or `{"refused": why}`.

Invariant: when `serving` ends, nothing listens, and every connection is closed.
"""

import asyncio
import json
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from kontrol.ensemble.canonical import JSON, NotJSON, parse
from kontrol.listener import accept
from kontrol.master.records.published import PUBLISHED_LIMIT, NotPublished, parse_document

log = logging.getLogger(__name__)

RUN_SOCKET = "RUN_SOCKET"

MOST_CLIENTS = 16
HEAD_LIMIT = 1024  # bytes of the first line

_SENDING = 10.0  # seconds for a client to send its document, and to read the answer
_BACKLOG = 512  # clients that wait for their turn; the kernel's `net.core.somaxconn` bounds it
_CHUNK = 64 * 1024
_LONGEST = 100  # bytes of a path, in all systems


class Publish(Protocol):
    """Publishes a document of the run under way."""

    async def __call__(self, key: str, document: JSON, *, remove: bool = False) -> int:
        """Publish it, or `remove` the one of that key; returns the version.

        Raises `NotPublished`.
        """
        ...


@asynccontextmanager
async def serving(folder: Path, publish: Publish | None) -> AsyncIterator[dict[str, str]]:
    """Serve in `folder`; yields the variables that name the socket.

    No variable is yielded if that is not possible, with a warning, or if nothing may be published.
    """
    path = folder / "run.sock"
    if publish is None:
        yield {}
        return
    try:
        listener = _listen(path)
    except OSError as error:
        log.warning("the run's socket %s: %s: this run cannot publish; see TMPDIR", path, error)
        yield {}
        return
    task = asyncio.create_task(_serve(listener, publish))
    try:
        yield {RUN_SOCKET: str(path)}
    finally:
        task.cancel()
        await asyncio.wait([task])
        listener.close()


async def _serve(listener: socket.socket, publish: Publish) -> None:
    room = asyncio.Semaphore(MOST_CLIENTS)
    async with asyncio.TaskGroup() as group:
        while True:
            await room.acquire()
            connection = (await accept(listener))[0]
            group.create_task(_answer(connection, publish)).add_done_callback(
                lambda _: room.release()
            )


async def _answer(connection: socket.socket, publish: Publish) -> None:
    loop = asyncio.get_running_loop()
    with connection:
        connection.settimeout(0)
        try:
            async with asyncio.timeout(_SENDING):
                request = await _read(connection)
            try:
                answer: dict[str, JSON] = {"version": await _obey(request, publish)}
            except NotPublished as error:
                log.warning("not published: %s", error)
                answer = {"refused": str(error)}
            async with asyncio.timeout(_SENDING):
                await loop.sock_sendall(connection, json.dumps(answer).encode() + b"\n")
        except OSError as error:
            log.debug("the run's socket: a client went away: %s", error)


async def _read(connection: socket.socket) -> bytes:
    """Return what the client sends, to its end, or a little more than it may."""
    loop = asyncio.get_running_loop()
    request = bytearray()
    while len(request) <= PUBLISHED_LIMIT + HEAD_LIMIT:
        part = await loop.sock_recv(connection, _CHUNK)
        if not part:
            break
        request += part
    return bytes(request)


async def _obey(request: bytes, publish: Publish) -> int:
    """Do what a request asks for. Raises `NotPublished`."""
    head, _, document = request.partition(b"\n")
    try:
        if len(head) > HEAD_LIMIT:
            raise NotJSON(f"over {HEAD_LIMIT} bytes")
        what = parse(head, depth=2)
    except NotJSON as error:
        raise NotPublished(f"the request is not JSON: {error}; use `kontrol publish`") from None
    match what:
        case {"publish": str(key)}:
            return await publish(key, parse_document(document))
        case {"remove": str(key)}:
            return await publish(key, None, remove=True)
    raise NotPublished("the request is of another version: use the `kontrol publish` of this one")


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.settimeout(0)
        if len(os.fsencode(path)) <= _LONGEST:
            listener.bind(os.fspath(path))
        else:  # Linux: a path for this process that is short
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                listener.bind(f"/proc/self/fd/{folder}/{path.name}")
            finally:
                os.close(folder)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
