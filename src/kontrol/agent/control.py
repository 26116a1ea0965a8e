"""The control socket: how `kontrol leave` reaches the agent of this machine or container.

A unix socket that only its owner may open (mode 0600, in a directory of mode 0700 unless the path
was chosen by hand). A connection has one line of request and one line of JSON in answer. `WHO`
returns the agent's pod: `{"id", "key", "tiers"}`. `LEAVE KEY ID` deregisters the pod of that key
and id; the answer comes when all tiers are done: `{"tiers": {tier: null or the reason}}`, with
`"already": true` if it had left before, or `{"refused": why}` if the agent is another pod's. A
signal could not return how it ended.

The agent serves it if it can: a path that is in use or cannot be made is a warning. The socket is
unlinked at the end unless another process has put its own in its place.

asyncio is imported where the agent serves: `kontrol leave` does without.
"""

import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kontrol.settings.private import run_folder

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger(__name__)

Leave = Callable[[], Awaitable[Mapping[str, str | None]]]

_MAX_REQUEST = 8192  # bytes, of a line that names a pod
_CLIENT_TIMEOUT = 5.0  # seconds for a client to send its request, and to read the answer
_CLIENTS = 8


class ControlError(Exception):
    """The agent cannot be reached, refuses to leave, or a tier does not know that it left."""


@dataclass(frozen=True, slots=True)
class Who:
    """The pod of an agent: its id and key, and the tiers that it reports to."""

    id: str
    key: str
    tiers: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"pod {self.id} (key {self.key})"

    @property
    def request(self) -> bytes:
        """The line that asks this pod to leave, and that another pod's agent refuses."""
        return f"LEAVE {self.key} {self.id}\n".encode()


def default_path(port: int, environment: Mapping[str, str]) -> Path:
    """Return where the agent with ZeroRPC port `port` listens unless `KONTROL_CONTROL` says.

    In `$XDG_RUNTIME_DIR`, which is the user's own, else in a directory of ours under `/tmp`.
    """
    return run_folder(environment) / f"{port}.sock"


async def serve(path: Path, who: Who, leave: Leave) -> None:
    """Serve `who` and `leave` at `path` until cancelled.

    Returns immediately, with a warning, if that is not possible.
    """
    import asyncio

    from kontrol.listener import accept

    try:
        listener, ours = _listen(path)
    except (OSError, ControlError) as error:
        log.warning(
            "control socket %s: %s; `kontrol leave` will not reach this agent:"
            " set KONTROL_CONTROL to a path of its own",
            path,
            error,
        )
        return
    room, left = asyncio.Semaphore(_CLIENTS), asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            while True:
                await room.acquire()
                connection = (await accept(listener))[0]
                group.create_task(_answer(connection, who, leave, left)).add_done_callback(
                    lambda _: room.release()
                )
    finally:
        _unlink(path, ours)
        listener.close()


def ask_who(path: Path, timeout: float = 10.0) -> Who:
    """Ask the agent at `path` which pod it is.

    Blocks, each step up to `timeout` seconds. Raises `ControlError`, which says why.
    """
    told = _ask(path, b"WHO\n", timeout)
    try:
        return Who(str(told["id"]), str(told["key"]), tuple(map(str, told["tiers"])))
    except (TypeError, KeyError):
        raise _no_agent(path, told) from None


def leave(path: Path, who: Who, timeout: float = 10.0) -> bool:
    """Ask the agent at `path` to leave if it is that of `who`; return when every tier knows it.

    Returns whether it left now: False if it had done so before.
    Blocks, each step up to `timeout` seconds. Raises `ControlError`, which says why.
    """
    told = _ask(path, who.request, timeout)
    if "refused" in told:
        raise ControlError(f"{path}: {told['refused']}")
    try:
        answers = dict(told["tiers"])
    except (TypeError, ValueError, KeyError):
        raise _no_agent(path, told) from None
    refused = {tier: reason for tier, reason in answers.items() if reason is not None}
    if refused:
        raise ControlError(
            "; ".join(
                f"tier {tier} did not acknowledge: {reason}" for tier, reason in refused.items()
            )
        )
    return told.get("already") is not True


def _ask(path: Path, request: bytes, timeout: float) -> dict[str, Any]:
    """Send a line, and return the object that answers it. Raises `ControlError`."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(os.fspath(path))
            connection.sendall(request)
            with connection.makefile("rb") as lines:
                line = lines.readline()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ControlError(
            f"no agent answers at {path} ({why}): start it, or use its user and its values of"
            " KONTROL_CONTROL and KONTROL_PORT"
        ) from None
    if not line.endswith(b"\n"):
        raise ControlError(f"the agent at {path} ended before it answered")
    try:
        told = json.loads(line.decode("utf-8"))
    except ValueError:
        raise _no_agent(path, line) from None
    if not isinstance(told, dict):
        raise _no_agent(path, told)
    return told


def _no_agent(path: Path, told: object) -> ControlError:
    return ControlError(
        f"the process that listens at {path} is not an agent: it answers {told!r:.80}"
    )


async def _answer(connection: socket.socket, who: Who, leave: Leave, left: "asyncio.Event") -> None:
    import asyncio

    loop = asyncio.get_running_loop()
    with connection:
        connection.settimeout(0)
        try:
            async with asyncio.timeout(_CLIENT_TIMEOUT):
                request = b""
                while not request.endswith(b"\n") and len(request) < _MAX_REQUEST:
                    part = await loop.sock_recv(connection, _MAX_REQUEST - len(request))
                    if not part:
                        return
                    request += part
            if request == b"WHO\n":
                answer: dict[str, Any] = {"id": who.id, "key": who.key, "tiers": who.tiers}
            elif request == who.request:
                log.info("deregistering on request")
                already = left.is_set()
                answer = {"tiers": dict(await leave()), "already": already}
                if not any(answer["tiers"].values()):
                    left.set()
            elif request.startswith(b"LEAVE"):
                answer = {"refused": f"this is the agent of {who}, which does not leave"}
            else:
                return
            async with asyncio.timeout(_CLIENT_TIMEOUT):
                await loop.sock_sendall(connection, json.dumps(answer).encode("utf-8") + b"\n")
        except OSError as error:
            log.debug("control socket: a client went away: %s", error)


def _listen(path: Path) -> tuple[socket.socket, int]:
    """Return a socket that listens at `path`, in place of a stale one, and its inode number."""
    _folder(path.parent)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.settimeout(0)
        before = os.umask(0o177)  # so that it is never open to others, not even for a moment
        try:
            _bind(listener, path)
        finally:
            os.umask(before)
        listener.listen(_CLIENTS)
        return listener, path.stat().st_ino
    except BaseException:
        listener.close()
        raise


def _bind(listener: socket.socket, path: Path) -> None:
    try:
        listener.bind(os.fspath(path))
    except OSError:
        if not _stale(path):
            raise
        path.unlink()
        listener.bind(os.fspath(path))


def _unlink(path: Path, ours: int) -> None:
    """Unlink `path` if it is still ours: while we hold the socket, its inode is not reused."""
    with contextlib.suppress(OSError):
        if path.stat().st_ino == ours:
            path.unlink()


def _stale(path: Path) -> bool:
    """Tell whether `path` is a socket without a listener. Raises `ControlError` if it has one."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return True
    raise ControlError("another agent listens there")


def _folder(folder: Path) -> None:
    """Make the socket's directory; refuse `kontrol-UID` if another user made it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.name == f"kontrol-{os.getuid()}":
        found = folder.lstat()
        if found.st_uid != os.getuid() or found.st_mode & 0o077:  # as the mode of any link has
            raise ControlError(f"{folder} is not a directory of this user alone (mode 0700)")
