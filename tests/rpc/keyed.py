"""Clusters of keys for tests, and servers and clients that use them."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from tests.rpc.support import BEAT, running

from kontrol.rpc.client import Client
from kontrol.rpc.limits import Limits
from kontrol.rpc.security.keyfolder import make
from kontrol.rpc.security.keys import FILES, Keyring, Kind, ServerKind
from kontrol.rpc.server import Method, Server


def cluster(folder: Path) -> Path:
    """Make the keys of a cluster in a new folder."""
    make(folder, "2026-11-23")
    return folder


def part(folder: Path, whole: Path, *names: str) -> Path:
    """Copy files of one folder to another: what a process is given of all keys."""
    folder.mkdir(exist_ok=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    for name in names:
        new = folder / f".{name}"
        new.write_bytes((whole / name).read_bytes())
        new.chmod(0o600)
        new.replace(folder / name)
    return folder


@contextlib.asynccontextmanager
async def guarded(
    methods: Mapping[str, Method],
    keys: Path | Keyring,
    own: ServerKind = "master",
    *,
    port: int = 0,
    heartbeat: float = BEAT,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> AsyncIterator[int]:
    """Run a server with keys; gives its port."""
    keyring = keys if isinstance(keys, Keyring) else Keyring.load(keys)
    server = Server(methods, heartbeat=heartbeat, limits=limits, keys=keyring, own=own)
    async with running(server, port) as bound:
        yield bound


def caller(
    port: int, keys: Path | None, as_: Kind = "agent", to: tuple[Kind, ...] = ("master",)
) -> Client:
    """Return a client with these keys."""
    keyring = None if keys is None else Keyring.load(keys)
    return Client("127.0.0.1", port, heartbeat=BEAT, keys=keyring, as_=as_, to=to)
