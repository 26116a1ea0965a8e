"""The gate of a server with keys: which peers may connect, and which may call.

Theory of operation. CURVE encrypts, and proves to each end that the other has the secret key of its
public one. A peer that does not use CURVE, or expects another key of this server, fails before it
has shown its own; so an unknown client learns nothing, not even whether a key would be accepted.
Then the handshake asks the gate, which answers from the keyring. Each call's key is looked up
again, since a connection outlives its handshake. The folder is watched (`watch`): when a key is
removed, the connections under it end within a second, even if their peers send nothing.

When the keyring has another secret key for this server, new connections use that; those that there
are go on until their clients, which have a list too, do not accept the old one any more
(docs/decisions/0091).
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Never

from kontrol.filewatch import Watch
from kontrol.ratelimit import LogLimiter
from kontrol.rpc.errors import Refused
from kontrol.rpc.peers import Peer
from kontrol.rpc.security import z85
from kontrol.rpc.security.keys import Keyring, KeysError, Kind, ServerKind, fingerprint, list_file
from kontrol.rpc.zmtp.curve import CurveServer
from kontrol.rpc.zmtp.machine import SERVER, Mismatch, Violation
from kontrol.rpc.zmtp.mechanism import Mechanism

_log = logging.getLogger(__name__)
_INFO, _WARNING = logging.INFO, logging.WARNING

_LOOK = 0.5  # seconds between checks of keys whose changes leave no events

_SERVES: Mapping[ServerKind, tuple[Kind, ...]] = {
    "master": ("master", "agent", "operator"),
    "agent": ("master", "operator"),
}
"""The kinds of keys whose calls a server of each kind accepts at all."""

_METADATA = {b"Socket-Type": SERVER.socket_type}
_UNFINISHED = "it ended before it had proved a key: it may have none, or only test the port"


class Gate:
    """Guards a server that is of the kind `own`.

    Raises `KeysError` if `keys` lack the secret key of that kind, or any key to serve.
    """

    def __init__(self, keys: Keyring, own: ServerKind) -> None:
        self._keys = keys
        self._taken = keys.refresh()
        self._own: ServerKind = own
        self._serves = _SERVES[own]
        self._pair = keys.own(own)
        self._key = self._pair.binary()
        keys.accepted(*self._serves)  # else no peer could ever connect
        self._refusals = LogLimiter(10, 60.0)
        self._probes = LogLimiter(1, 60.0)  # apart, so that they do not use up the other
        self._revoke: Callable[[], None] = lambda: None

    def mechanism(self, peer: Peer) -> Mechanism:
        """Return the mechanism of a new connection."""
        return CurveServer(self._key, partial(self._admit, peer), _METADATA, os.urandom)

    async def watch(self, revoke: Callable[[], None]) -> Never:
        """Use changed keys as soon as they are there, and `revoke` what is not accepted then."""
        self._revoke = revoke
        with Watch("the keys", interval=_LOOK) as watch:
            while True:
                watch.arm(self._keys.paths())  # before looking, so that no change falls between
                self._look()
                await watch.changed()

    def caller(self, peer: Peer) -> tuple[Kind, str]:
        """Return the kind of a peer's key, and how it begins. Raises `Refused`."""
        kind, shown = self._keys.kind(peer.public), fingerprint(peer.public)
        if kind is None or kind not in self._serves:
            raise Refused(
                "Forbidden", f"the key {shown} is not accepted any more: connect with another"
            )
        return kind, shown

    def accepts(self, public: str) -> bool:
        """Return whether the holder of a key may call."""
        return self._keys.kind(public) in self._serves

    def unmet(self, peer: Peer, error: Exception | None) -> None:
        """Log that a connection ended before its handshake did."""
        if error is None:
            return  # by our choice
        reason = _UNFINISHED
        if isinstance(error, Mismatch):
            reason = "it does not use keys"
        elif isinstance(error, Violation):
            reason = str(error)
        probe = reason is _UNFINISHED
        limiter, level = (self._probes, _INFO) if probe else (self._refusals, _WARNING)
        held = limiter.admit(asyncio.get_running_loop().time())
        if held is not None:
            more = f" ({held} more refused before)" if held else ""
            _log.log(level, "refused %s: %s%s", peer.address, reason, more)

    def _admit(self, peer: Peer, public: bytes) -> str | None:
        """Return why a public key, proved by the peer, is not accepted; or note it."""
        self._look()
        text = z85.encode(public)
        kind = self._keys.kind(text)
        if kind in self._serves:
            peer.public = text
            return None
        lists = ", ".join(list_file(one) for one in self._serves)
        its = f"is of the {list_file(kind)}" if kind else "is unknown"
        return f"its key {fingerprint(text)} {its}; accepted here are {lists}"

    def _look(self) -> None:
        keys = self._keys.refresh()
        if keys is self._taken:
            return
        self._taken = keys
        self._revoke()
        try:
            pair = self._keys.own(self._own)
        except KeysError as error:
            _log.error("the key of this endpoint stays as it was: %s", error)
            return
        if pair != self._pair:
            self._pair = pair
            self._key = pair.binary()
            _log.info("listening with the key %s now", fingerprint(pair.public))
