"""The published documents, kept in a file of this pod for its applications.

On the connection on which it reports to a tier, the agent asks a master for what is later than what
the file has; the answer comes when there is such. So it is never sent what it has, and says what it
has by asking. With several tiers, the first listed one that has anything published wins, for good.

Invariants: the file is replaced as a whole, or stays as it is; the versions of one tier in it only
rise, whatever masters send, over restarts too, since the file itself says what it has. Where there
are several tiers, it names the one in `tier`, since each counts versions of its own.
"""

import asyncio
import logging
import os
from binascii import crc32
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Never

from kontrol.agent.connection import Caller
from kontrol.agent.payload import read_file
from kontrol.ensemble.canonical import JSON, NotJSON, canonical, parse
from kontrol.rpc.errors import CallTimeout, LostRemote, RemoteError, RpcError
from kontrol_common.files import beside_of, replace_file

if TYPE_CHECKING:  # an agent without hooks does not load what runs commands
    from kontrol.agent.hooks import HookRunner, HookStatus

log = logging.getLogger(__name__)

DOCUMENTS_LIMIT = 1024 * 1024  # bytes that are taken of a master: twice what one publishes
DOCUMENTS_DEPTH = 100

# Above what masters publish (`BELIEVED_VERSION` and some). A file that has a higher version is
# damaged: nothing would ever be later, and no master believes it.
_HIGHEST = 2**50 + 10**11
_WAIT = 3600.0  # seconds until an unanswered question is asked again
_RARELY = 600.0  # seconds between questions to masters that publish nothing
_FIRST_RETRY, _LAST_RETRY = 0.5, 30.0  # seconds; doubles with each failure
_LONGEST = 256  # characters of an error


@dataclass(frozen=True, slots=True)
class PublishedStatus:
    """What the file has: the `version`, 0 without any, and the tier that it is of, if known.

    `documents` counts them. `error` says why the latest could not be written, None if it is there.
    `failures` are all attempts to write that failed. `hook` says how the hook does, None before it
    first runs, and without one.
    """

    path: str
    version: int
    tier: str | None
    documents: int
    error: str | None
    failures: int
    hook: "HookStatus | None"


class PublishedFile:
    """The file at `path`, for the `tiers` in the order in which they are listed.

    `pod` is the key of this pod, for operators. `uniform` returns numbers evenly spread over 0 to
    1. `hook` runs `command` whenever the file was replaced, and once at the start if there is one:
    the process before may have ended first.
    """

    def __init__(
        self,
        path: Path,
        tiers: Sequence[str],
        *,
        pod: str,
        uniform: Callable[[], float],
        hook: "HookRunner | None" = None,
        command: tuple[str, ...] = (),
    ) -> None:
        self.path = path.absolute()
        self._tiers = tuple(tiers)
        self._pod = pod
        self._hook = hook
        self._command = command
        self._uniform = uniform
        self._error: str | None = None
        self._failures = 0
        self._version, self._documents, self._sum = 0, 0, 0
        self._tier: int | None = None  # which of the tiers it is of
        self._open()

    @property
    def status(self) -> PublishedStatus:
        """What the file has now."""
        return PublishedStatus(
            path=str(self.path),
            version=self._version,
            tier=None if self._tier is None else self._tiers[self._tier],
            documents=self._documents,
            error=self._error,
            failures=self._failures,
            hook=None if self._hook is None else next(iter(self._hook.statuses), None),
        )

    async def run(self) -> Never:
        """Run the hook, if there is one, until cancelled."""
        if self._version:
            self._want()
        if self._hook is not None:
            await self._hook.run()
        await _never()

    def _want(self) -> None:
        """Have the hook run for what the file has now."""
        if self._hook is None:
            return
        from kontrol.agent.hooks import HookRequest  # it loads what runs commands

        env = {"KONTROL_PUBLISHED": str(self.path), "PUBLISHED_VERSION": str(self._version)}
        self._hook.want(HookRequest("published", self._command, env))

    async def follow(self, tier: str, caller: Caller, *, pause: float) -> Never:
        """Ask a master of `tier` on an open connection, and keep the file, until cancelled.

        `pause` is how many seconds to wait if it has no room for one more that asks. Raises
        `LostRemote` if the connection is over.
        """
        mine, failures = self._tiers.index(tier), 0
        while True:
            if self._tier is not None and self._tier < mine:
                await _never()
            delay = await self._ask(mine, caller, pause)
            failures = 0 if delay is not None else failures + 1
            if delay is None:
                delay = min(_FIRST_RETRY * 2 ** min(failures - 1, 10), _LAST_RETRY)
            if delay:
                await asyncio.sleep(delay * (0.75 + 0.5 * self._uniform()))

    async def _ask(self, tier: int, caller: Caller, pause: float) -> float | None:
        """Ask once; return after how many seconds to ask again, None if it failed."""
        name = self._tiers[tier]
        try:
            text = await caller.call("published", self._have(tier), self._about(), timeout=_WAIT)
        except LostRemote:
            raise
        except CallTimeout:
            return 0.0
        except RpcError as error:
            if isinstance(error, RemoteError) and error.name == "NameError":
                log.info("tier %s publishes nothing: its masters are of an earlier version", name)
                return _RARELY
            log.warning("tier %s: nothing published is received: %s", name, str(error)[:_LONGEST])
            return None
        if text is None:
            return pause
        return 0.0 if self._take(tier, text) else None

    def _have(self, tier: int) -> int:
        return self._version if tier == self._tier else 0

    def _about(self) -> str:
        about: dict[str, JSON] = {"pod": self._pod}
        if self._version:
            about["sum"] = self._sum  # after a restore the same version may be another's
        if self._error is not None:
            about["error"] = self._error
        return canonical(about).decode()

    def _take(self, tier: int, text: object) -> bool:
        """Replace the file by what a master sent, if that is later; return whether it has it."""
        name = self._tiers[tier]
        try:
            raw, content = _read(text)
        except NotJSON as error:
            self._fail(f"tier {name} sent what is not a published document: {error}")
            return False
        version, documents = _version_of(content), content["documents"]
        if version <= self._have(tier) or (self._tier is not None and self._tier < tier):
            return False  # late or doubled
        total = crc32(raw)
        if len(self._tiers) > 1:
            raw = canonical({**content, "tier": name})
        try:
            self._write(raw + b"\n")
        except OSError as error:
            beside = os.fspath(beside_of(self.path))
            at = f" ({beside})" if error.filename == beside else ""
            self._fail(f"{self.path}: {error.strerror or error}{at}; the file stays as it was")
            return False
        self._version, self._tier, self._error, self._sum = version, tier, None, total
        self._documents = len(documents) if isinstance(documents, dict) else 0
        log.info("version %d of what is published, of tier %s, is in %s", version, name, self.path)
        self._want()
        return True

    def _fail(self, error: str) -> None:
        self._failures += 1
        self._error = error[:_LONGEST]
        log.warning("what is published cannot be kept: %s; it is tried again", error)

    def _write(self, content: bytes) -> None:
        """Replace the file. Its mode is that of any new file: applications read it."""
        replace_file(self.path, content)

    def _content(self) -> bytes:
        """Read the file. Raises `OSError`."""
        return read_file(self.path, DOCUMENTS_LIMIT)

    def _open(self) -> None:
        """Read what an earlier process left, so that no earlier version replaces it."""
        try:
            raw, content = _read(self._content())
        except FileNotFoundError:
            return
        except (OSError, NotJSON) as error:
            why = error.strerror if isinstance(error, OSError) else error
            log.warning("%s: %s: it is replaced by what is published", self.path, why)
            return
        tier = content.get("tier")
        if len(self._tiers) == 1 and tier in (None, self._tiers[0]):
            self._tier = 0
        elif tier in self._tiers:
            self._tier = self._tiers.index(str(tier))
        else:
            return  # of another tier: any version of these is to replace it
        documents = content["documents"]
        sent = {name: content[name] for name in ("documents", "version")}
        self._version = _version_of(content)
        self._sum = crc32(canonical(sent) if "tier" in content else raw)
        self._documents = len(documents) if isinstance(documents, dict) else 0


async def _never() -> Never:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nothing resolves it")


def _read(text: object) -> tuple[bytes, dict[str, JSON]]:
    """Return a published text as bytes, and what it says. Raises `NotJSON`."""
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    if not isinstance(raw, bytes):
        raise NotJSON(f"{type(text).__name__}; expected text")
    if len(raw) > DOCUMENTS_LIMIT:
        raise NotJSON(f"{len(raw)} bytes, over the limit of {DOCUMENTS_LIMIT}")
    content = parse(raw, depth=DOCUMENTS_DEPTH)
    if not isinstance(content, dict) or not isinstance(content.get("documents"), dict):
        raise NotJSON("no object with documents")
    if not _version_of(content):
        raise NotJSON(f"its version is {content.get('version')!r:.40}; expected a number from 1")
    return raw.strip(), content


def _version_of(content: dict[str, JSON]) -> int:
    """Return the version, 0 if there is none that is valid."""
    version = content.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and 0 < version <= _HIGHEST:
        return version
    return 0
