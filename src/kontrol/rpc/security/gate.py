"""The gate of a listening socket with keys: which peers may connect, and the key of a message.

Theory of operation. ZeroMQ's CURVE encrypts, and proves to each end that the other has the secret
key of its public one. A peer that does not use CURVE, or expects another key of this server, fails
before it is asked for its own; so an unknown client learns nothing, not even whether a key would be
accepted. Then ZeroMQ asks, through its authentication protocol (ZAP, RFC 27 of ZeroMQ), whether the
peer's public key is accepted. The gate answers from the keyring, on the event loop like every other
socket here. ZeroMQ marks each message of the connection with the key, as `User-Id`.

Without an answer to that, ZeroMQ would accept every key: the domain is enforced, the gate is open
before the socket is bound, and each call's key is looked up again, since a connection outlives its
handshake. The folder is watched (`watch`): when a key is removed, calls that are open under it end
immediately, even if their peers send nothing.

When the keyring has another secret key for this server, the socket is bound again with it. ZeroMQ
closes the connections with the listener; their owners connect again, to either key
(docs/decisions/0091).
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Never

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from kontrol.filewatch import Watch
from kontrol.listener import BindError, plain_address
from kontrol.ratelimit import LogLimiter
from kontrol.rpc.errors import Refused
from kontrol.rpc.security.keys import Keyring, KeysError, Kind, ServerKind, fingerprint, list_file
from kontrol.rpc.sockets import Context, monitor
from kontrol.rpc.transport import Transport

_log = logging.getLogger(__name__)
_INFO, _WARNING = logging.INFO, logging.WARNING

_ZAP = "inproc://zeromq.zap.01"  # where ZeroMQ asks, in each context
_DOMAIN = b"kontrol"
_LOOK = 0.5  # seconds between checks of keys whose changes leave no events

_SERVES: Mapping[ServerKind, tuple[Kind, ...]] = {
    "master": ("master", "agent", "operator"),
    "agent": ("master", "operator"),
}
"""The kinds of keys whose calls a server of each kind accepts at all."""

_REASONS = {
    int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): "it does not use keys",
    int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): (
        "it expects another public key here: it is of another cluster, or does not know ours"
    ),
}
_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_GONE = "a peer that was gone immediately"
_UNFINISHED = "it ended before it had proved a key: it may have none, or only test the port"


class Gate:
    """Guards a router that serves as `own`. `open`, `secure` the router, bind it, `start`.

    Raises `KeysError` if `keys` lack the secret key of that kind, or any key to serve.
    """

    def __init__(self, keys: Keyring, own: ServerKind) -> None:
        self._keys = keys
        self._taken = keys.refresh()
        self._own: ServerKind = own
        self._serves = _SERVES[own]
        self._pair = keys.own(own)
        keys.accepted(*self._serves)  # else no peer could ever connect
        self._zap: zmq.Socket[bytes] | None = None
        self._asked: Transport | None = None
        self._monitor: Transport | None = None
        self._router: zmq.Socket[bytes] | None = None
        self._events: zmq.Socket[bytes] | None = None
        self._where = ""
        self._refusals = LogLimiter(10, 60.0)
        self._probes = LogLimiter(1, 60.0)  # apart, so that they do not use up the other
        self._addresses: dict[int, str] = {}
        self._failure: str | None = None
        self._revoke: Callable[[], None] = lambda: None
        self._fail: Callable[[BindError], None] = lambda _: None

    def open(self, context: Context) -> None:
        """Open the socket that ZeroMQ asks, before any peer can connect. Raises `BindError`."""
        self._zap = context.socket(zmq.REP)
        self._zap.setsockopt(zmq.LINGER, 0)
        try:
            self._zap.bind(_ZAP)
        except zmq.ZMQError as error:
            self.close()
            reason = os.strerror(error.errno or 0)
            raise BindError(
                f"cannot authenticate peers: {reason}: one ZeroMQ context serves one endpoint"
                " with keys; give the other a context of its own"
            ) from None

    def secure(self, router: "zmq.Socket[bytes]") -> None:
        """Prepare a router that is yet to be bound."""
        self._router = router
        self._events = monitor(router.context, router, _EVENTS)
        self._set_key(router)

    def _set_key(self, router: "zmq.Socket[bytes]") -> None:
        router.setsockopt(zmq.CURVE_SERVER, 1)
        router.setsockopt(zmq.CURVE_SECRETKEY, self._pair.secret.encode("ascii"))
        router.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        revoke: Callable[[], None],
        fail: Callable[[BindError], None],
    ) -> None:
        """Answer ZeroMQ's questions.

        `revoke` is called when other keys are in force, `fail` when the router cannot listen again.
        """
        if self._zap is None or self._router is None or self._events is None:
            raise BindError("start() was called before open() and secure()")
        self._revoke, self._fail = revoke, fail
        self._where = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._monitor = Transport(self._events, self._noticed, loop)
        self._asked = Transport(self._zap, self._answer, loop)
        self._look()

    def stop(self) -> None:
        """Watch the router no more; to be called before it is closed."""
        if self._router is not None and self._events is not None:
            # In this order: see `Connection.close`.
            if not self._router.closed:
                self._router.disable_monitor()
            if self._monitor is not None:
                self._monitor.close()
            self._events.close(linger=0)
            self._router = None

    def close(self) -> None:
        """Answer no more; to be called when the router is closed."""
        if self._zap is not None and not self._zap.closed:
            with contextlib.suppress(zmq.ZMQError):  # it is not bound if that has failed
                self._zap.unbind(_ZAP)  # immediately: closing does so some time later
        if self._asked is not None:
            self._asked.close()
        elif self._zap is not None:
            self._zap.close(linger=0)

    async def watch(self) -> Never:
        """Use changed keys as soon as they are there, whether or not any peer sends anything."""
        with Watch("the keys", interval=_LOOK) as watch:
            while True:
                watch.arm(self._keys.paths())  # before looking, so that no change falls between
                self._look()
                await watch.changed()

    def admit(self, frame: zmq.Frame) -> tuple[Kind, str]:
        """Return the kind and the key that a message came with. Raises `Refused`."""
        public = str(frame.get("User-Id"))
        kind = self.kind(public)
        if kind is None:
            raise Refused(
                "Forbidden",
                f"the key {fingerprint(public)} is not accepted any more: connect with another",
            )
        return kind, public

    def kind(self, public: str) -> Kind | None:
        """Return the kind of a key, if its holder may call."""
        kind = self._keys.kind(public)
        return kind if kind in self._serves else None

    def refused(self, address: str, reason: str) -> None:
        """Log that a peer was refused, unless there are too many such lines."""
        probe = reason is _UNFINISHED
        limiter, level = (self._probes, _INFO) if probe else (self._refusals, _WARNING)
        held = limiter.admit(asyncio.get_running_loop().time())
        if held is not None:
            more = f" ({held} more refused before)" if held else ""
            _log.log(level, "refused %s: %s%s", address, reason, more)

    def _answer(self, frames: list[zmq.Frame]) -> None:
        """Answer whether a peer's public key is welcome."""
        version, request, _, address, _, mechanism, *credentials = (one.bytes for one in frames)
        self._look()
        public, kind = "", None
        if mechanism == b"CURVE" and len(credentials) == 1:
            public = z85.encode(credentials[0]).decode("ascii")
            kind = self._keys.kind(public)
        welcome = kind in self._serves
        if not welcome:
            lists = ", ".join(list_file(one) for one in self._serves)
            its = f"is of the {list_file(kind)}" if kind else "is unknown"
            reason = f"its key {fingerprint(public)} {its}; accepted here are {lists}"
            self.refused(plain_address(address.decode("ascii", "replace")), reason)
        status, text = (b"200", b"welcome") if welcome else (b"400", b"not welcome")
        user = public.encode("ascii") if welcome else b""
        if self._asked is not None:
            self._asked.send((version, request, status, text, user, b""))

    def _noticed(self, frames: list[zmq.Frame]) -> None:
        """Handle an event of the router: for the log, and to see in time that keys have changed.

        A failure is reported without its address, but the end of its connection comes next.
        """
        message = parse_monitor_message([frame.bytes for frame in frames])
        event, value = int(message["event"]), int(message["value"])
        if event == zmq.EVENT_ACCEPTED:
            self._addresses[value] = _address(value)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            self._failure = _REASONS.get(value, f"it breaks the protocol (error 0x{value:x})")
            self._look()
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._failure = _UNFINISHED
        elif event == zmq.EVENT_DISCONNECTED:
            address = self._addresses.pop(value, _GONE)
            if self._failure is not None:
                self.refused(address, self._failure)
                self._failure = None
        elif event == zmq.EVENT_CLOSED:
            self._listen()

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
        if pair != self._pair and self._router is not None:
            self._pair = pair
            with contextlib.suppress(zmq.ZMQError):  # it is between two listeners already
                self._router.unbind(self._where)

    def _listen(self) -> None:
        """Listen with the new key, now that the old listener is closed."""
        if self._router is None:
            return
        self._set_key(self._router)
        try:
            self._router.bind(self._where)
        except zmq.ZMQError as error:
            reason = os.strerror(error.errno or 0)
            self._fail(BindError(f"cannot listen on {self._where} again: {reason}"))
        else:
            _log.info("listening with the key %s now", fingerprint(self._pair.public))


def _address(descriptor: int) -> str:
    """Return the address of the peer of a TCP socket that is ZeroMQ's, if it is still there."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as peer:
            return plain_address(str(peer.getpeername()[0]))
    except (OSError, IndexError):
        return _GONE
